/**
 * What is learned of conversations under the chat templates of published models, from packages of PyPI: the assistant's text,
 * its calls and its end of turn, wholly, and nothing else. Templates with {% generation %} blocks are tried without them, and
 * compared with what they mark. Where a Python with transformers is found (GRAFT_PEER), its renderings must be the same. Exits
 * with 1 if one conversation is learned wrong, or fewer than 99.5 % exactly.
 *   npm run proof:masks -- [--templates DIR] [--only NAME] [--show]
 */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { GraftError } from '../src/base/index.ts';
import { ChatTemplate } from '../src/data/index.ts';
import { fetchChatTemplates, type NamedTemplate, templatesIn } from '../tools/fetch/chat-templates.ts';
import { type Conversation, conversations } from './mask-conversations.ts';
import { differenceFromMarks, faultOf } from './mask-oracle.ts';
import { peer, report, workFolder } from './support.ts';

const { values: args } = parseArgs({
  options: { templates: { type: 'string', multiple: true }, only: { type: 'string' }, show: { type: 'boolean' } },
});
/** DeepSeek's templates write their end token themselves; others get a text that no template has. */
const deepSeekEnd = '<｜end▁of▁sentence｜>';
const specialOf = (source: string) => ({
  bos_token: '<BOS>',
  eos_token: source.includes(deepSeekEnd) ? deepSeekEnd : '<EOS>',
  pad_token: '<PAD>',
  unk_token: '<UNK>',
});
const MARK = /\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}/g;
const unmarked = (source: string) =>
  source.replaceAll(MARK, (_, a, end, b) => `{%${a} ${end ? 'endif' : 'if true'} ${b}%}`);

const templates = (args.templates?.flatMap(templatesIn) ?? fetchChatTemplates()).filter(({ name }) =>
  name.includes(args.only ?? ''),
);
interface Counts {
  exact: number;
  refused: number;
  wrong: number;
  /** Conversations that the template itself rejects; nothing is learned of them anywhere. */
  rejected: number;
}
const firstLine = (error: unknown) => (error as Error).message.split('\n')[0]!;

function attempt<T>(act: () => T): T | Error {
  try {
    return act();
  } catch (error) {
    return error as Error;
  }
}

function measure({ name, source }: NamedTemplate): Counts & { marks: number } {
  const counts = { exact: 0, refused: 0, wrong: 0, rejected: 0, marks: 0 };
  const chat = new ChatTemplate(unmarked(source), specialOf(source));
  const marked = unmarked(source) === source ? undefined : new ChatTemplate(source, specialOf(source));
  const note = (what: string, { name: conversation }: Conversation, why: string) => {
    if (args.show || what === 'WRONG') console.log(`  ${what} ${name} on ${conversation}: ${why.slice(0, 600)}`);
  };
  for (const conversation of conversations) {
    const { messages, tools } = conversation;
    const rendered = attempt(() => chat.render(messages, { tools }));
    if (rendered instanceof Error) {
      counts.rejected++;
      note('rejected', conversation, firstLine(rendered));
      continue;
    }
    const learned = attempt(() => chat.learned(messages, tools));
    if (learned instanceof Error) {
      if (!(learned instanceof GraftError)) throw learned;
      counts.refused++;
      note('refused', conversation, firstLine(learned));
      continue;
    }
    const marks = marked && attempt(() => marked.learned(messages, tools));
    const truth = marks instanceof Error || marks?.spans.length === 0 ? undefined : marks;
    if (truth) counts.marks++;
    const fault =
      faultOf(conversation, learned, chat, truth) ?? (truth && differenceFromMarks(conversation, learned, truth));
    if (fault) counts.wrong++;
    else counts.exact++;
    if (fault) note('WRONG', conversation, fault);
  }
  return counts;
}

/** How many renderings are the same text as transformers'; undefined without a Python that has it. */
function comparedWithTransformers(): { same: number; both_reject: number; different: string[] } | undefined {
  if (!process.env.GRAFT_PEER && !existsSync(join(process.env.HOME ?? '', '.cache', 'graft', 'peer', 'venv')))
    return undefined;
  const dir = workFolder();
  writeFileSync(
    join(dir, 'in.json'),
    JSON.stringify({ templates: templates.map((t) => ({ ...t, special: specialOf(t.source) })), conversations }),
  );
  peer('render.py', '--input', join(dir, 'in.json'), '--out', join(dir, 'out.json'));
  const theirs = JSON.parse(readFileSync(join(dir, 'out.json'), 'utf8')) as Record<string, (string | null)[]>;
  const found = { same: 0, both_reject: 0, different: [] as string[] };
  for (const { name, source } of templates) {
    const chat = new ChatTemplate(source, specialOf(source));
    for (const [i, { name: conversation, messages, tools }] of conversations.entries()) {
      const ours = attempt(() => chat.render(messages, { tools }));
      const text = theirs[name]![i];
      if (ours instanceof Error ? text === null : ours === text) found[text === null ? 'both_reject' : 'same']++;
      else found.different.push(`${name} on ${conversation}`);
    }
  }
  return found;
}

const results = templates.map((template) => ({ name: template.name, ...measure(template) }));
const width = Math.max(...results.map(({ name }) => name.length));
for (const { name, exact, refused, wrong, rejected } of results) {
  console.log(
    `${name.padEnd(width)}  exact ${exact}  refused ${refused}  wrong ${wrong}  (rejected by the template ${rejected})`,
  );
}
const used = results.filter(({ exact, refused, wrong }) => exact + refused + wrong > 0);
const sum = (key: keyof Counts | 'marks') => used.reduce((total, counts) => total + counts[key], 0);
const tried = sum('exact') + sum('refused') + sum('wrong');
const transformers = comparedWithTransformers();
console.log(
  `${used.length} of ${templates.length} templates with ${tried} conversations: ${sum('exact')} exact, ${sum('refused')} refused, ${sum('wrong')} wrong`,
);
report(
  'masks',
  [
    { what: 'conversations learned wrong', got: sum('wrong'), bar: 0, better: 'less' },
    { what: 'share learned exactly', got: sum('exact') / tried, bar: 0.995, better: 'more' },
    { what: 'templates', got: used.length, bar: args.only || args.templates ? 1 : 100, better: 'more' },
    ...(transformers
      ? [
          {
            what: 'renderings unlike transformers, share',
            got: transformers.different.length / (tried || 1),
            bar: 0,
            better: 'less' as const,
          },
        ]
      : []),
  ],
  { templates: results, compared_with_marks: sum('marks'), ...(transformers && { transformers }) },
);

/**
 * Chat templates of published models, from packages of PyPI and of the goldens, against transformers (GRAFT_PEER): each renders
 * each conversation, with tools, documents, variables, generation prompts and continued turns, and the texts must be the same
 * byte for byte; what transformers refuses must be refused. Exits with 1 if one is not.
 *   npm run proof:templates -- [--templates DIR] [--only NAME] [--show]
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { packageRoot } from '../src/base/index.ts';
import { parseExactly } from '../src/data/exact-rows.ts';
import { ChatTemplate, type Message } from '../src/data/index.ts';
import { fetchChatTemplates, type NamedTemplate, templatesIn } from '../tools/fetch/chat-templates.ts';
import { peer, report, workFolder } from './support.ts';
import { conversationsJson } from './template-conversations.ts';

const { values: args } = parseArgs({
  options: { templates: { type: 'string', multiple: true }, only: { type: 'string' }, show: { type: 'boolean' } },
});

interface Conversation {
  readonly name: string;
  readonly messages: readonly Message[];
  readonly tools?: readonly unknown[];
  readonly documents?: readonly unknown[];
  readonly variables?: Readonly<Record<string, unknown>>;
  readonly add_generation_prompt?: boolean;
  readonly continue_final_message?: boolean | string;
}
const special = { bos_token: '<BOS>', eos_token: '<EOS>', pad_token: '<PAD>', unk_token: '<UNK>' };

function templatesOfGoldens(): NamedTemplate[] {
  const file = join(packageRoot, 'test', 'golden', 'chat', 'chat.json');
  const { templates } = JSON.parse(readFileSync(file, 'utf8')) as { templates: Record<string, string> };
  return Object.entries(templates).map(([name, source]) => ({ name: `golden/${name}`, source }));
}

const templates = (args.templates?.flatMap(templatesIn) ?? [...fetchChatTemplates(), ...templatesOfGoldens()]).filter(
  ({ name }) => name.includes(args.only ?? ''),
);
const conversations = parseExactly(conversationsJson) as readonly Conversation[];

/** The text, or undefined where the template refuses the conversation, and why. */
function rendered(source: string, conversation: Conversation): { text?: string; why: string } {
  const { messages, tools, documents, variables } = conversation;
  try {
    const text = new ChatTemplate(source, special).render(messages, {
      tools,
      documents,
      variables,
      addGenerationPrompt: conversation.add_generation_prompt ?? false,
      continueFinalMessage: conversation.continue_final_message ?? false,
    });
    return { text, why: '' };
  } catch (error) {
    return { why: (error as Error).message };
  }
}

const dir = workFolder();
const [input, out] = [join(dir, 'in.json'), join(dir, 'out.json')];
const named = JSON.stringify(templates.map((template) => ({ ...template, special })));
writeFileSync(input, `{"templates": ${named}, "conversations": ${conversationsJson}}`);
peer('render.py', '--input', input, '--out', out);
const theirs = JSON.parse(readFileSync(out, 'utf8')) as Record<string, (string | null)[]>;

const counts = { same: 0, both_refuse: 0, different: 0 };
const results = templates.map(({ name, source }) => {
  const own = { name, same: 0, both_refuse: 0, different: [] as string[] };
  for (const [i, conversation] of conversations.entries()) {
    const expected = theirs[name]![i]!;
    const { text, why } = rendered(source, conversation);
    if (expected === null && text === undefined) own.both_refuse++;
    else if (text === expected) own.same++;
    else {
      own.different.push(conversation.name);
      const at = text === undefined || expected === null ? 0 : [...text].findIndex((c, k) => c !== [...expected][k]);
      const part = (s: string | null | undefined) =>
        s == null ? 'refused' : JSON.stringify(s.slice(Math.max(0, at - 40), at + 60));
      if (args.show)
        console.log(`  ${name} on ${conversation.name}: ${part(text)} ${why}, transformers ${part(expected)}`);
    }
  }
  counts.same += own.same;
  counts.both_refuse += own.both_refuse;
  counts.different += own.different.length;
  return own;
});

const width = Math.max(...results.map(({ name }) => name.length));
for (const { name, same, both_refuse, different } of results) {
  console.log(`${name.padEnd(width)}  same ${same}  refused by both ${both_refuse}  different ${different.length}`);
}
console.log(
  `${templates.length} templates with ${conversations.length} conversations each: ${counts.same} texts the same, ${counts.both_refuse} refused by both, ${counts.different} different`,
);
report(
  'templates',
  [
    { what: 'renderings unlike transformers', got: counts.different, bar: 0, better: 'less' },
    { what: 'texts compared', got: counts.same, bar: args.only || args.templates ? 1 : 10_000, better: 'more' },
    { what: 'templates', got: templates.length, bar: args.only || args.templates ? 1 : 100, better: 'more' },
    { what: 'conversations', got: conversations.length, bar: 20, better: 'more' },
  ],
  { ...counts, results: results.filter(({ different }) => different.length > 0) },
);

import { GraftError } from '../../base/index.ts';
import { ChatTemplate, type Message, makePrompt, type PromptSource, toMessages } from '../../data/index.ts';
import { useThreads } from '../../engine/index.ts';
import { generateText, type SamplingOptions } from '../../generate/index.ts';
import type { JobContext } from '../job-context.ts';
import { residentOf } from '../resident.ts';
import type { UseOptions } from './rows.ts';

/** A text to continue, or a conversation up to the turn to answer. */
export type Prompt = string | readonly Message[];

/** Options of generation. */
export interface GenerateSettings extends SamplingOptions, UseOptions {
  /** Whether a text is put into the model's chat template as the user's turn; a conversation always is. Default: false. */
  readonly chat?: boolean | undefined;
  /** System message; with it, a text is the user's turn of a chat too. */
  readonly system?: string | undefined;
  /** Whether the last message of a conversation, the assistant's, is the beginning of the answer, and is continued. Default: false. */
  readonly continueFinalMessage?: boolean | undefined;
  /** Length of the answer at most. Default: 256. */
  readonly maxNewTokens?: number | undefined;
  /** The answer ends before the first of these, which may be or contain special tokens, though these are not shown. */
  readonly stop?: readonly string[] | undefined;
  /** Of the sampling: the same seed gives the same answer. Default: 0. */
  readonly seed?: number | undefined;
}

/** A generated text. */
export interface GenerateResult {
  /** The generated text, without a stop string. */
  readonly text: string;
  /** The tokens that were generated; after a stop string also those of the stop string. */
  readonly ids: readonly number[];
  /** Why it ended: the model's end token, `maxNewTokens` or the context's end, or a stop string. */
  readonly reason: 'eos' | 'length' | 'stop';
  /** Tokens of the prompt. */
  readonly promptTokens: number;
  /** Rate at which the prompt was read. */
  readonly prefillTokensPerSecond: number;
  /** Rate of the tokens after the first; 0 when there is none. */
  readonly decodeTokensPerSecond: number;
}

export type GenerateArgs = GenerateSettings & { readonly modelId: number; readonly prompt: Prompt };

/** Generates text. Emits it piece by piece. */
export function generate(args: GenerateArgs, context: JobContext<string>): GenerateResult {
  const { modelId, adapter, taskNumber, maxNewTokens = 256, threads } = args;
  const resident = residentOf(modelId);
  useThreads(threads ?? resident.threads);
  requireSampling(args);
  const model = resident.use(adapter, undefined, context);
  const { tokenizer, path } = resident;
  const source = promptSource(args);
  const chatTemplate = 'messages' in source ? ChatTemplate.of(tokenizer) : undefined;
  const hint = 'Leave the option chat out, or use a model with a chat template';
  const { ids } = makePrompt(source, { tokenizer, chat: chatTemplate, place: path, hint });
  const options = { ...args, maxNewTokens, taskNumber: resident.taskNumber(adapter, taskNumber) };
  const { stopRequested } = context;
  const result = generateText(model, tokenizer, ids, { ...options, stopRequested }, (text) => context.emit(text));
  if (result.reason === 'interrupted') {
    const { text, ids: generated } = result;
    throw new GraftError('interrupted', `stopped after ${generated.length} tokens`, {
      data: { text, ids: generated },
    });
  }
  return { ...result, reason: result.reason };
}

/** @throws GraftError 'usage' for a setting of drawing where the likeliest token is taken */
function requireSampling({ temperature = 0, topK, topP, minP, seed }: GenerateArgs): void {
  const asked = Object.entries({ 'top-k': topK, 'top-p': topP, 'min-p': minP, seed }).find(
    ([, value]) => value !== undefined,
  );
  if (temperature !== 0 || !asked) return;
  throw new GraftError(
    'usage',
    `${asked[0]} is for sampling, and at temperature 0 the likeliest token is always taken`,
    {
      place: asked[0],
      hint: 'Give a temperature above 0, or leave it out',
    },
  );
}

function promptSource({ prompt, chat, system, continueFinalMessage }: GenerateArgs): PromptSource {
  const isText = typeof prompt === 'string';
  if (continueFinalMessage && (isText || prompt.at(-1)?.role !== 'assistant')) {
    throw new GraftError('usage', 'only a message of the assistant at the end of a conversation can be continued', {
      place: 'continueFinalMessage',
      hint: 'Give messages that end with the beginning of the answer',
    });
  }
  if (!chat && system === undefined && isText) return { text: prompt };
  return {
    messages: [
      ...(system === undefined ? [] : [{ role: 'system', content: system }]),
      ...(isText ? [{ role: 'user', content: prompt }] : toMessages(prompt)),
    ],
    ...(continueFinalMessage && { continueFinalMessage }),
  };
}

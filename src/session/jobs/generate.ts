import { ChatTemplate, type Message, makePrompt, type PromptSource } from '../../data/index.ts';
import { useThreads } from '../../engine/index.ts';
import { generateText, requireLanguageModel, type SamplingOptions } from '../../generate/index.ts';
import { resolveModel } from '../../io/index.ts';
import { headOf, type Quantize } from '../../models/index.ts';
import { residentModel, residentTokenizer, type TaskNumberArgs, taskNumberFor } from '../resident.ts';

export interface GenerateArgs extends SamplingOptions, TaskNumberArgs {
  readonly model: string;
  /** What to continue; with `chat`, what to answer. A conversation up to the turn to answer is a chat in any case. */
  readonly prompt: string | readonly Message[];
  readonly chat?: boolean;
  readonly system?: string;
  readonly maxNewTokens: number;
  readonly stop?: readonly string[];
  readonly seed?: number;
  readonly quantize?: Quantize;
  readonly threads?: number;
}

export async function generateJob(args: GenerateArgs, emit: (event: { type: 'text'; text: string }) => void) {
  useThreads(args.threads);
  const path = await resolveModel(args.model);
  if (args.adapter === undefined) requireLanguageModel(headOf(path).name);
  const tokenizer = residentTokenizer(path);
  const source = promptSource(args);
  const chat = 'messages' in source ? ChatTemplate.of(tokenizer) : undefined;
  const { ids } = makePrompt(source, { tokenizer, chat, place: path, hint: 'Leave --chat out' });
  const model = residentModel(path, args.quantize ?? 'keep', args.adapter);
  const result = generateText(model, tokenizer, ids, { ...args, taskNumber: taskNumberFor(args) }, (text) =>
    emit({ type: 'text', text }),
  );
  return {
    text: result.text,
    ids: result.ids,
    reason: result.reason,
    prompt_tokens: result.promptTokens,
    prefill_tokens_per_s: result.prefillTokensPerSecond,
    decode_tokens_per_s: result.decodeTokensPerSecond,
  };
}

function promptSource({ prompt, chat, system }: GenerateArgs): PromptSource {
  if (!chat && typeof prompt === 'string') return { text: prompt };
  return {
    messages: [
      ...(system ? [{ role: 'system', content: system }] : []),
      ...(typeof prompt === 'string' ? [{ role: 'user', content: prompt }] : prompt),
    ],
  };
}

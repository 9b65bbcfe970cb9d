import { GraftError, parseWith } from '../base/index.ts';
import type { RowInput, RowStream } from '../data/index.ts';
import type {
  ClassifyResult,
  EvaluateResult,
  GenerateResult,
  GenerateSettings,
  IdRows,
  LentWeights,
  Logits,
  MergeResult,
  MergeSettings,
  Prediction,
  PredictResult,
  Progress,
  Prompt,
  RowsOptions,
  UseOptions,
} from './jobs/index.ts';
import {
  classifySchema,
  evaluateSchema,
  generateSchema,
  mergeSchema,
  requireIds,
  requirePrompt,
  rowsOf,
  rowsSchema,
  serveSchema,
  split,
  useSchema,
  writeLogitsSchema,
} from './options.ts';
import type { Abortable, RunJob } from './protocol.ts';
import type { ModelInfo } from './resident.ts';
import { Running } from './running.ts';
import { ModelServing, type Serving } from './serving.ts';
import type { ServeOptions } from './serving-types.ts';

/**
 * A model in a session's engine thread, with its adapters. Every method takes the adapter to use; switching adapters of one
 * task costs nothing, and one with another head loads the model again.
 */
export class LoadedModel implements AsyncDisposable {
  readonly #id: number;
  readonly #run: RunJob;
  #info: ModelInfo;

  /** @internal Sessions make these: `await session.load(…)`. */
  constructor(id: number, info: ModelInfo, run: RunJob) {
    this.#id = id;
    this.#info = info;
    this.#run = run;
  }

  /** @internal Gives its weights to another session. */
  lend(): Promise<LentWeights> {
    return this.#run('lendWeights', { modelId: this.#id });
  }

  /** @internal Frees weights that it gave, if nobody took them. */
  takeBack(lent: LentWeights): Promise<void> {
    return this.#run('takeBackWeights', lent);
  }

  /** Facts about the model: its family, task, size, context, and adapters. */
  get info(): ModelInfo {
    return this.#info;
  }

  /**
   * Continues a text, or answers a conversation. Await it for the result, or iterate over pieces of text as they become
   * certain; leaving the iteration stops it.
   * @throws GraftError 'usage' for a prompt that leaves no room in the context, or a model that generates no text;
   *   'interrupted' when stopped: `data` then has the text so far
   */
  generate(prompt: Prompt, settings: GenerateSettings & Abortable = {}): Running<string, GenerateResult> {
    const left = new AbortController();
    return new Running(
      async (tell) => {
        const { args, signal } = split(generateSchema, settings, 'generate');
        requirePrompt(prompt);
        const either = signal ? AbortSignal.any([signal, left.signal]) : left.signal;
        return this.#run('generate', { modelId: this.#id, prompt, ...args }, { onEvent: tell, signal: either });
      },
      () => left.abort(),
    );
  }

  /**
   * The likeliest of several answers for each row, with a language model. Rows are conversations, or prompts and completions;
   * where all have their answer, the result has the accuracy. Iterate for the progress.
   */
  classify(
    rows: RowStream,
    options: RowsOptions & Abortable & { readonly labels: readonly string[] },
  ): Running<Progress, ClassifyResult> {
    return new Running(async (tell) => {
      const { args, signal } = split(classifySchema, options, 'classify');
      const source = rowsOf(rows, signal);
      const collected = source instanceof Promise ? await source : source;
      return this.#run('classify', { modelId: this.#id, rows: collected, ...args }, { onEvent: tell, signal });
    });
  }

  /**
   * A prediction for each row with the head of the model or the adapter: classes, tags, answers, vectors. Iterate over the
   * predictions as they come, in the order of the rows.
   */
  predict(rows: RowStream, options: RowsOptions & Abortable = {}): Running<Prediction, PredictResult> {
    return new Running(async (tell) => {
      const { args, signal } = split(rowsSchema, options, 'predict');
      const source = rowsOf(rows, signal);
      const collected = source instanceof Promise ? await source : source;
      return this.#run('predict', { modelId: this.#id, rows: collected, ...args }, { onEvent: tell, signal });
    });
  }

  /** Loss and metrics over labelled rows, each metric with its 95 % confidence interval. Iterate for the progress. */
  evaluate(
    rows: RowStream,
    options: RowsOptions & Abortable & { readonly labels?: readonly string[] | undefined } = {},
  ): Running<Progress, EvaluateResult> {
    return new Running(async (tell) => {
      const { args, signal } = split(evaluateSchema, options, 'evaluate');
      const source = rowsOf(rows, signal);
      const collected = source instanceof Promise ? await source : source;
      return this.#run('evaluate', { modelId: this.#id, rows: collected, ...args }, { onEvent: tell, signal });
    });
  }

  /** A vector [C] for each text. @throws GraftError 'input' for a text without tokens */
  async embed(texts: readonly string[], options: Omit<RowsOptions, 'task'> & Abortable = {}): Promise<Float32Array[]> {
    if (texts.length === 0) return [];
    const rows = texts.map((text): RowInput => ({ text }));
    const { predictions } = await this.predict(rows, { ...options, task: 'embedding' });
    return predictions.map(({ embedding, skipped }, i) => {
      if (embedding) return Float32Array.from(embedding);
      throw new GraftError('input', `text ${i + 1} has no vector: ${skipped}`, {
        place: 'embed',
        hint: 'Leave it out',
      });
    });
  }

  /** The head's output for each row of token ids. */
  async logits(ids: IdRows, options: UseOptions & Abortable = {}): Promise<Logits[]> {
    const { args, signal } = split(useSchema, options, 'logits');
    requireIds(ids);
    return this.#run('logits', { modelId: this.#id, ids, ...args }, { signal });
  }

  /** As `logits`, into a new safetensors file (`logits.0`, `logits.1`, …), with one row in memory at a time. */
  async writeLogits(
    ids: IdRows,
    options: UseOptions & Abortable & { readonly out: string },
  ): Promise<{ readonly rows: number; readonly tokens: number; readonly out: string }> {
    const { args, signal } = split(writeLogitsSchema, options, 'writeLogits');
    requireIds(ids);
    return this.#run('writeLogits', { modelId: this.#id, ids, ...args }, { signal });
  }

  /** Puts another adapter on the model, under a name. @throws GraftError 'mismatch' where it does not fit */
  async addAdapter(name: string, dir: string): Promise<void> {
    this.#info = await this.#run('addAdapter', { modelId: this.#id, name, dir });
  }

  /** Takes an adapter off the model. @throws GraftError 'usage' for a name that the model does not have */
  async removeAdapter(name: string): Promise<void> {
    this.#info = await this.#run('removeAdapter', { modelId: this.#id, name });
  }

  /**
   * Begins to answer many requests at once, each with its own adapter: those that the model was loaded with, and those that are added.
   * Other calls take turns with the passes of it.
   * @throws GraftError 'usage' for unknown options; what makes serving impossible, requests throw
   */
  serve(options: ServeOptions = {}): Serving {
    return new ModelServing(this.#id, parseWith(serveSchema, options, 'serve'), this.#run);
  }

  /** Writes the model with the adapter added to its weights, and compares the outputs of both. */
  async merge(settings: MergeSettings & Abortable): Promise<MergeResult> {
    const { args, signal } = split(mergeSchema, settings, 'merge');
    return this.#run('merge', { modelId: this.#id, ...args }, { signal });
  }

  /** Frees the model. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#run('unload', { modelId: this.#id }).catch((error: Error & { kind?: string }) => {
      if (error.kind !== 'state') throw error; // the session has ended before, and the model with it
    });
  }
}

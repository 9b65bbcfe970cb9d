import type { GenerationDelta, GenerationEnd } from '../../generate/index.ts';
import { finishReason } from '../answers.ts';
import { newId } from '../wire/index.ts';
import type { AnswerForm } from './form.ts';
import { ToolCallReader } from './tool-calls.ts';
import type { ToolForm, WrittenCall } from './tool-forms.ts';

/** A call as OpenAI's answers have it. */
export interface ToolCall {
  readonly id: string;
  readonly type: 'function';
  readonly function: { readonly name: string; readonly arguments: string };
}

/** The end of a turn. */
export interface TurnEnd {
  /** Its last text. */
  readonly content: string;
  readonly calls: readonly ToolCall[];
  readonly finish: 'stop' | 'length' | 'tool_calls';
}

/** One answer of the assistant while it comes: what of it is text, and what are calls. */
export class Turn {
  readonly #form: AnswerForm;
  readonly #reader: ToolCallReader | undefined;
  readonly #beginId: number | undefined;
  readonly #parallel: boolean;
  #forced = '';

  /**
   * @param toolForm how the model writes calls
   * @param beginId of the special token that begins calls, where there is one
   * @param parallel whether it may make several calls
   */
  constructor(form: AnswerForm, toolForm: ToolForm, beginId: number | undefined, parallel: boolean) {
    this.#form = form;
    this.#beginId = beginId;
    this.#parallel = parallel;
    const names = form.tools?.map((tool) => tool.function.name) ?? [];
    if (form.kind === 'calls') this.#reader = new ToolCallReader(toolForm, names);
  }

  /** Returns the text that is certain. */
  push({ text, ids }: GenerationDelta): string {
    if (this.#form.kind === 'forced') {
      this.#forced += text;
      return '';
    }
    return this.#reader?.push(text, this.#beginId !== undefined && ids.includes(this.#beginId)) ?? text;
  }

  end(end: GenerationEnd): TurnEnd {
    const finish = finishReason(end);
    const { content, calls } =
      this.#form.kind === 'forced' ? this.#endForced() : (this.#reader?.end() ?? { content: '', calls: [] });
    const kept = this.#parallel ? calls : calls.slice(0, 1);
    return { content, calls: kept.map(callOf), finish: kept.length > 0 && finish === 'stop' ? 'tool_calls' : finish };
  }

  #endForced() {
    const calls = this.#form.readForced(this.#forced);
    return calls ? { content: '', calls } : { content: this.#forced, calls: [] };
  }
}

const callOf = ({ name, arguments: json }: WrittenCall): ToolCall => ({
  id: newId('call_'),
  type: 'function',
  function: { name, arguments: json },
});

/** A message of a conversation. */
export interface Message {
  /** Whose turn it is: system, user, assistant, or another role that the chat template has. */
  readonly role: string;
  /** The text of the message; a turn that only calls functions may have none. */
  readonly content?: string;
  /** Further fields, which are passed on to the chat template. */
  readonly [field: string]: unknown;
}

/** A class by name or number, a number to predict, or several classes. */
export type Label = string | number | readonly (string | number)[];

/** An answer to a question, and where it begins in the context, in UTF-16 units. */
export interface Answer {
  readonly text: string;
  readonly start: number;
}

/** A row of data, independent of the format of its file. Undefined labels, tags, completions and answers are to be predicted. */
export type Example = ExampleContent & {
  /** Which of several tasks the row belongs to, from 0. */
  readonly task?: number;
  /** What of the row is not used, as a note says it: `column 'source' is not used`. */
  readonly unused?: readonly string[];
};

export type ExampleContent =
  | {
      readonly kind: 'chat';
      readonly messages: readonly Message[];
      readonly tools?: readonly unknown[] | undefined;
      /** Documents that the model may quote. */
      readonly documents?: readonly unknown[] | undefined;
      /** More variables of the chat template, such as `enable_thinking`. */
      readonly variables?: Readonly<Record<string, unknown>> | undefined;
      /** Index of the first message to learn; earlier ones are context. */
      readonly from: number;
      /** Indices of the assistant's messages that are context all the same. */
      readonly notLearned?: readonly number[] | undefined;
    }
  | { readonly kind: 'completion'; readonly prompt: string; readonly completion: string | undefined }
  | { readonly kind: 'text'; readonly text: string }
  | {
      readonly kind: 'labelled';
      readonly text: string;
      readonly pair: string | undefined;
      readonly label: Label | undefined;
    }
  | { readonly kind: 'tags'; readonly words: readonly string[]; readonly tags: readonly string[] | undefined }
  | {
      readonly kind: 'question';
      readonly question: string;
      readonly context: string;
      /** Empty where the context does not answer the question. */
      readonly answers: readonly Answer[] | undefined;
    }
  | { readonly kind: 'image'; readonly image: unknown; readonly label: Label | undefined }
  | {
      readonly kind: 'tokens';
      readonly ids: readonly number[];
      /** One for each token, one for the row, or what the task defines. */
      readonly labels: readonly number[] | number | undefined;
      /** Token types (BERT's segments), one for each id. */
      readonly types?: readonly number[];
      /** Ids of the second text of a pair. */
      readonly pairIds?: readonly number[];
    };

/** Notes on what of the examples is not used, each with the number of rows that have it. */
export function unusedNotes(examples: readonly Example[], place: string): string[] {
  const counts = new Map<string, number>();
  for (const { unused = [] } of examples) for (const what of unused) counts.set(what, (counts.get(what) ?? 0) + 1);
  return [...counts].map(([what, rows]) => `${place}: ${what} (${rows} ${rows === 1 ? 'row' : 'rows'})`);
}

/** The example with its own task number, or with `task` where it has none. */
export const withTaskNumber = (example: Example, task: number | undefined): Example =>
  task === undefined || example.task !== undefined ? example : { ...example, task };

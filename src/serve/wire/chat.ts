import { z } from 'zod';
import { type NeutralFields, remarks } from './body.ts';
import { samplingFields } from './sampling.ts';

const textPart = z.strictObject({
  type: z.literal('text', {
    error: "expected 'text'; parts of other types (image_url, input_audio, file) are not supported",
  }),
  text: z.string(),
});
const refusalPart = z.strictObject({ type: z.literal('refusal'), refusal: z.string() });
const content = z.union([z.string(), z.array(textPart).min(1)], {
  error: 'expected a text or parts of the type text; other parts (image_url, input_audio, file) are not supported',
});
const name = z.string().max(256).nullish();

const toolCall = z.strictObject({
  id: z.string().max(256),
  type: z.literal('function').default('function'),
  function: z.strictObject({ name: z.string().min(1).max(256), arguments: z.string() }),
  /** Streams number calls; some clients send it back. */
  index: z.int().nullish(),
});

const message = z.discriminatedUnion('role', [
  z.strictObject({ role: z.enum(['system', 'developer', 'user']), content, name }),
  z.strictObject({
    role: z.literal('assistant'),
    content: z
      .union([z.string(), z.array(z.union([textPart, refusalPart])).min(1)], {
        error: 'expected a text or parts of the type text',
      })
      .nullish(),
    name,
    refusal: z.null().optional(),
    reasoning_content: z.string().nullish(),
    tool_calls: z.array(toolCall).nullish(),
    audio: z.null().optional(),
    function_call: z.null().optional(),
    annotations: z.array(z.never()).nullish(),
  }),
  z.strictObject({ role: z.literal('tool'), content, tool_call_id: z.string().max(256), name }),
]);

const functionSchema = z.strictObject({
  name: z.string().regex(/^[\w.-]{1,128}$/, 'expected letters, digits, . _ and -, at most 128'),
  description: z.string().nullish(),
  parameters: z.record(z.string(), z.unknown()).nullish(),
  strict: z.boolean().nullish(),
});

const namedTool = z.strictObject({
  type: z.literal('function'),
  function: z.strictObject({ name: z.string().max(128) }),
});

export const chatSchema = z.strictObject({
  ...samplingFields,
  messages: z.array(message).min(1),
  max_completion_tokens: z.int().min(1).optional(),
  logprobs: z.boolean().default(false),
  top_logprobs: z.int().min(0).max(20).optional(),
  response_format: z
    .discriminatedUnion('type', [
      z.strictObject({ type: z.literal('text') }),
      z.strictObject({ type: z.literal('json_object') }),
      z.strictObject({
        type: z.literal('json_schema'),
        json_schema: z.strictObject({
          name: z.string().max(256).nullish(),
          description: z.string().nullish(),
          schema: z.union([z.record(z.string(), z.unknown()), z.boolean()]).nullish(),
          strict: z.boolean().nullish(),
        }),
      }),
    ])
    .optional(),
  tools: z.array(z.strictObject({ type: z.literal('function'), function: functionSchema })).optional(),
  tool_choice: z.union([z.enum(['none', 'auto', 'required']), namedTool]).optional(),
  parallel_tool_calls: z.boolean().default(true),
  chat_template_kwargs: z.record(z.string(), z.unknown()).optional(),
});

export type ChatFields = z.infer<typeof chatSchema>;
export type ChatMessage = ChatFields['messages'][number];
export type Tool = NonNullable<ChatFields['tools']>[number];

/** Fields of OpenAI's reference that have no effect here. */
export const neutralChatFields: NeutralFields = {
  ...remarks,
  store: [false],
  service_tier: ['auto', 'default'],
  modalities: [['text']],
  audio: [],
  prediction: [],
  reasoning_effort: [],
  verbosity: [],
  web_search_options: [],
  functions: [],
  function_call: [],
  prompt_cache_retention: [],
};

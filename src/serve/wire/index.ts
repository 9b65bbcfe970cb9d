export { readBody, remarks } from './body.ts';
export { type ChatFields, type ChatMessage, chatSchema, neutralChatFields, type Tool } from './chat.ts';
export {
  type CompletionFields,
  completionSchema,
  inputSchema,
  neutralCompletionFields,
  promptsOf,
} from './completions.ts';
export { newId, now } from './ids.ts';
export { chatLogprobs, completionLogprobs } from './logprobs.ts';
export { checkAnswers, type Sampling, samplingOf } from './sampling.ts';

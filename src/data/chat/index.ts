export { makePrompt, type Prompt, type PromptOptions, type PromptSource, promptSourceOf } from './prompt.ts';
export { ChatTemplate, type RenderOptions, requireChatTemplate } from './template.ts';

export { ChatTemplate, type RenderOptions } from './template.ts';

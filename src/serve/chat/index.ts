export { answerForm } from './form.ts';
export { chatPrompt } from './prompt.ts';
export { beginId, toolFormOf } from './tool-forms.ts';
export { Turn } from './turn.ts';

export { qat } from './qat.ts';

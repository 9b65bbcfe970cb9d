export { layerwise } from './layerwise.ts';

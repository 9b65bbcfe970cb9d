export { bottleneck } from './bottleneck.ts';
export { floorDivide } from './config.ts';
export { fusion } from './fusion.ts';
export { niceCoupling } from './invertible.ts';

export { bucketSize, buckets, byOwner, concatenated, gradientBucketSize, parts, size } from './buckets.ts';
export { gathersInPlace } from './connected.ts';
export { dealt } from './deal.ts';
export { type ReadRows, rowsInMemory } from './even-shares.ts';
export { type Group, type JoinedGroup, oneProcess, type Traffic } from './group.ts';
export { joinGroup } from './join.ts';
export {
  defaultTimeout,
  launchEnvironment,
  type NodePlacement,
  nodeEnvironment,
  type RankPlacement,
  runVariable,
} from './launch-environment.ts';
export { type Piece, wholePiece } from './pieces.ts';
export { ShardedUnit, type UnitTensors } from './sharded-unit.ts';
export { SpareMemory } from './spare-memory.ts';

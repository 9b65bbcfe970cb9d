export { dealt } from './deal.ts';
export { type Group, type JoinedGroup, oneProcess, type Traffic } from './group.ts';
export { joinGroup } from './join.ts';
export {
  defaultTimeout,
  launchEnvironment,
  type NodePlacement,
  nodeEnvironment,
  type Placement,
} from './launch-environment.ts';

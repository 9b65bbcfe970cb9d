export { type LaunchOptions, launch } from './launch.ts';
export { launcherVariable } from './rank-process.ts';

export { AllowedFolders } from './allowed.ts';
export { AdapterFolder } from './folder.ts';
export { AdapterRegistry, checkName, type ResolveAdapter, type ServedAdapter } from './registry.ts';

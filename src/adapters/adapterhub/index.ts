export { hubUpdates } from './convert.ts';
export {
  fileNames,
  fillAdapterHub,
  isAdapterHub,
  nameFor,
  openAdapterHub,
  pythonJson,
  readAdapterHubConfig,
  savedAdapterHub,
  storedByAdapterHub,
  writeAdapterHub,
} from './files.ts';
export { besideHead, hasHead, taskOfAdapterHub } from './head.ts';

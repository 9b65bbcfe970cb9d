/** Names of adapters, which are parts of the keys of AdapterHub's tensors. */
import { basename, dirname, resolve } from 'node:path';

/** Attributes of torch's ModuleDict: AdapterHub cannot load an adapter of such a name. */
const reserved =
  /^(apply|bfloat16|buffers|children|clear|compile|cpu|cuda|double|eval|float|forward|half|ipu|items|keys|modules|mtia|parameters|pop|to|train|training|type|update|values|xpu)$/;

/** The text as a name that torch accepts in the key of a tensor. */
export const moduleName = (text: string): string => {
  const name = text.replaceAll(/[^\w-]+/g, '_') || 'adapter';
  return reserved.test(name) ? `${name}_adapter` : name;
};

/** The name of an adapter that is saved to `dir`: that of the directory, or of the run where the directory's says nothing. */
export const adapterNameFor = (dir: string): string => {
  const folder = basename(resolve(dir));
  return moduleName(/^(adapter|best|\d+-.*)$/.test(folder) ? basename(dirname(resolve(dir))) : folder);
};

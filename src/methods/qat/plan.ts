/** Which modules a config rounds, to which format, and whether that is possible. */
import { GraftError } from '../../base/index.ts';
import { type Embedding, type Linear, type Model, moduleAt, unwrapped } from '../../nn/index.ts';
import {
  type FormatName,
  formats,
  ggmlBlockNames,
  ggufFormats,
  isBlockFormat,
  isIntegerFormat,
  isSameRounding,
  type Quantization,
  requireWidths,
  roundingName,
  type WeightFormat,
} from '../../quant/index.ts';
import { candidatesOf, layerUnder, selectTargets } from '../shared/index.ts';
import { type QatConfig, quantizationOf } from './config.ts';

/** @throws GraftError 'usage' */
export function refuse(problem: string, hint: string): never {
  throw new GraftError('usage', problem, { place: 'method', hint });
}

/** @throws GraftError 'usage' for fields that exclude one another */
export function requireFields(config: QatConfig): void {
  const formatsUsed = [config.weight, config.embedding, config.head].filter((format) => format !== undefined);
  const blocks = formatsUsed.find((format) => !isIntegerFormat(format));
  if (blocks && config.group_size !== undefined && !formatsUsed.some(isIntegerFormat))
    refuse(`${blocks} has blocks of its own size, and group_size is for integers`, 'Leave out group_size');
  if (!isIntegerFormat(config.weight) && !config.symmetric)
    refuse(`symmetric: false is for integers, not for ${config.weight}`, 'Leave out symmetric');
  const others = formatsUsed.filter((name) => !(ggufFormats as string[]).includes(name));
  if (config.activation === 'q8' && others.length > 0)
    refuse(
      `activation: q8 is how llama.cpp computes with GGUF’s formats, and ${others[0]} is not one of them`,
      `Choose activation: int8, or one of ${ggmlBlockNames.map((name) => name.toLowerCase()).join(', ')}`,
    );
  if (config.learned_range && (!isIntegerFormat(config.weight) || !config.symmetric || config.over === 'base'))
    refuse(
      'learned_range needs symmetric integers over the merged weight',
      'Choose int2 to int8, or leave out learned_range',
    );
}

/** The number format of each module that is rounded, by path. */
export function formatsByPath(model: Model, config: QatConfig): Map<string, WeightFormat> {
  const { embeddings, head } = model.sites;
  const isOutput = head !== undefined && model.task.labels.length === 0;
  const targets = { target_modules: config.target_modules ?? 'all-linear', exclude_modules: config.exclude_modules };
  const byPath = new Map<string, WeightFormat>();
  for (const { path, kind } of selectTargets(candidatesOf(model), targets, [])) {
    if (kind === 'embedding')
      refuse(`target_modules selects '${path}', an embedding`, 'Give its format in the field embedding');
    byPath.set(path, config.weight);
  }
  if (config.head && !isOutput) refuse('head is for models with an output projection to a vocabulary', 'Leave it out');
  if (config.head) byPath.set(head!, config.head);
  if (config.embedding) byPath.set(embeddings, config.embedding);
  const [table, output] = [embeddings, head].map((path) => path && unwrapped(moduleAt(model.root, path)));
  const tied = isOutput && (table as Embedding).weight === (output as Linear).weight;
  const [ofTable, ofHead] = [byPath.get(embeddings), byPath.get(head ?? '')];
  if (!tied || (ofTable === undefined && ofHead === undefined)) return byPath;
  if (ofTable && ofHead && ofTable !== ofHead)
    refuse(
      `embeddings and head share one table, which cannot be ${ofTable} and ${ofHead}`,
      'Give embedding and head the same format',
    );
  byPath.set(embeddings, (ofTable ?? ofHead)!).set(head!, (ofTable ?? ofHead)!);
  return byPath;
}

/** @throws GraftError 'mismatch' that names the layers whose rows a format's groups do not divide */
export function requireWidthsOf(model: Model, config: QatConfig, byPath: ReadonlyMap<string, WeightFormat>): void {
  const widthAt = (path: string) => {
    const layer = layerUnder(moduleAt(model.root, path));
    return 'inFeatures' in layer ? layer.inFeatures : layer.width;
  };
  for (const format of new Set(byPath.values())) {
    const paths = [...byPath.keys()].filter((path) => byPath.get(path) === format);
    requireWidths(quantizationOf(config, format), new Map(paths.map((path) => [path, widthAt(path)])));
  }
}

/** Whether the weight of a layer is rounded so already, in its file or while it was loaded. @throws GraftError 'usage' where it is packed in another format */
export function isRounded(layer: Linear | Embedding, path: string, wanted: Quantization): boolean {
  const { format, roundedAs } = layer;
  const width = 'inFeatures' in layer ? layer.inFeatures : layer.width;
  if (roundedAs && isSameRounding(roundedAs, wanted, width)) return true;
  if (format < 0) return false;
  const [packed] = Object.entries(formats).find(([, { nativeId }]) => nativeId === format)!;
  if (packed === wanted.format) return true;
  const held = roundedAs ? roundingName(roundedAs) : packed;
  const isFloat = !isBlockFormat(packed as FormatName);
  refuse(
    `the weight of '${path}' is held as ${held}, and cannot be rounded to ${roundingName(wanted)} on top of that`,
    `Load the model with quantize: none${isFloat ? '' : `, or round to ${held}`}`,
  );
}

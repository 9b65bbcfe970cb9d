import { GraftError } from '../base/index.ts';
import { modelTypes } from './model-types.gen.ts';

/** What to do about weights that another program quantised, by `quant_method`. */
const unquantized =
  'Name the model that it was made from, or in transformers call dequantize() on it and save_pretrained; Graft quantises while loading (quantize: nf4, int8)';

type Config = Readonly<Record<string, unknown>>;

/** Names of tensors that hold the numbers of a quantisation, and not those of a layer. */
const quantizedTensor =
  /\.(absmax|quant_map|SCB|weight_format|qweight|qzeros|g_idx|weight_scale|weight_scale_inv|W_q|_data)$|\.quant_state\./;

/** @throws GraftError 'input' for a family that Graft does not read */
export function requireFamily({ model_type: type }: Config, place: string): void {
  if (typeof type !== 'string' || modelTypes.includes(type)) return;
  throw new GraftError('input', `model_type '${type}' is not supported`, {
    place,
    hint: `Supported are ${modelTypes.join(', ')}`,
  });
}

/** The program that a config says quantised the weights, where Graft does not read what it writes. */
function quantizerOf({ quantization_config: quantization }: Config): string | undefined {
  const { quant_method: method, load_in_4bit, load_in_8bit } = (quantization ?? {}) as Config;
  const name = method ?? (load_in_4bit || load_in_8bit ? 'bitsandbytes' : undefined);
  return name === undefined || name === 'compressed-tensors' ? undefined : String(name);
}

/** Says of a model that was loaded that its config speaks of a quantisation which its weights do not have. */
export function undoneQuantization(config: Config): string[] {
  const name = quantizerOf(config);
  if (name === undefined) return [];
  return [
    `quantization_config of config.json names ${name}, and the weights are not quantised: they are read as they are, where transformers quantises them while loading (quantize: nf4, int8)`,
  ];
}

/**
 * Refuses weights that another program quantised.
 * @param tensors the names of the weights, where they are known: a config may still speak of a quantisation that was undone
 * @throws GraftError 'input' with what to do
 */
export function requireReadableWeights(config: Config, place: string, tensors?: Iterable<string>): void {
  const name = quantizerOf(config);
  if (name === undefined) return;
  if (tensors && ![...tensors].some((tensor) => quantizedTensor.test(tensor))) return;
  throw new GraftError('input', `the weights are quantised by ${name}, which Graft does not read`, {
    place,
    hint: unquantized,
  });
}

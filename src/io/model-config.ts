import { GraftError } from '../base/index.ts';
import { modelTypes } from './model-types.gen.ts';

/** What to do about weights that another program quantised, by `quant_method`. */
const unquantized =
  'Name the model that it was made from, or in transformers call dequantize() on it and save_pretrained; Graft quantises while loading (quantize: nf4, int8)';

/**
 * Checks what decides whether Graft reads the weights beside a config.json: its family, and how the weights are quantised.
 * @param place of the config
 * @throws GraftError 'input' for a family or a quantisation that Graft does not read
 */
export function requireSupportedConfig(config: Readonly<Record<string, unknown>>, place: string): void {
  const type = config.model_type;
  if (typeof type === 'string' && !modelTypes.includes(type)) {
    throw new GraftError('input', `model_type '${type}' is not supported`, {
      place,
      hint: `Supported are ${modelTypes.join(', ')}`,
    });
  }
  const {
    quant_method: method,
    load_in_4bit,
    load_in_8bit,
  } = (config.quantization_config ?? {}) as Record<string, unknown>;
  const name = method ?? (load_in_4bit || load_in_8bit ? 'bitsandbytes' : undefined);
  if (name === undefined || name === 'compressed-tensors') return;
  throw new GraftError('input', `the weights are quantised by ${String(name)}, which Graft does not read`, {
    place,
    hint: unquantized,
  });
}

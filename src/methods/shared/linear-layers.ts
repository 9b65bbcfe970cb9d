/** Attaching wrappers to the linear layers that a config selects, for methods that support linear layers only. */
import { GraftError } from '../../base/index.ts';
import { type Linear, type LinearLayer, type Model, moduleAt, replaceModule } from '../../nn/index.ts';
import type { Tensor } from '../../tensor/index.ts';
import { candidatesOf } from './candidates.ts';
import { savedTargets, selectTargets, type TargetConfig } from './targets.ts';
import { type CopiesConfig, trainedCopies } from './trained-copies.ts';
import { layerUnder, type Switch, unwrap, type WrappedParts, type Wrapper } from './wrappers.ts';

/** A layer's wrapper, and its parameters by the end of their keys. */
export interface WrappedLayer {
  readonly wrapper: Wrapper;
  readonly parameters: Readonly<Record<string, Tensor>>;
}

/** The layers that a method wraps: `parts` is what `wrappedAdapter` needs of them. */
export interface WrappedLayers {
  readonly paths: readonly string[];
  readonly parts: Pick<WrappedParts, 'parameters' | 'wrappers' | 'toggle' | 'copies'>;
  /** The fields of PEFT's saved config that depend on the selection. */
  savedFields(): { target_modules: string | readonly string[]; fan_in_fan_out: boolean };
}

/**
 * Puts a wrapper on each linear layer that `config` selects, and attaches the copies that its `modules_to_save` and `bias` ask for.
 * @param defaults names of the targets when `target_modules` is not given
 * @param wrap makes the wrapper of one layer; `index` counts the layers
 * @throws GraftError 'usage' as `selectTargets`, and for an embedding; the model is then as before
 */
export function wrapLinearLayers(
  model: Model,
  method: string,
  config: TargetConfig & CopiesConfig,
  defaults: readonly string[],
  wrap: (base: LinearLayer, path: string, index: number, toggle: Switch) => WrappedLayer,
): WrappedLayers {
  const candidates = candidatesOf(model);
  const selected = selectTargets(candidates, config, defaults);
  const embedding = selected.find(({ kind }) => kind === 'embedding');
  if (embedding) {
    throw new GraftError(
      'usage',
      `target_modules selects '${embedding.path}', an embedding, and ${method} supports linear layers only`,
      { place: 'target_modules', hint: 'Leave it out, or use lora' },
    );
  }
  const paths = selected.map(({ path }) => path);
  const toggle: Switch = { enabled: true };
  const copies = trainedCopies(model, config, paths);
  const parameters = new Map<string, Tensor>();
  const wrappers: { path: string; wrapper: Wrapper }[] = [];
  try {
    paths.forEach((path, index) => {
      const layer = wrap(moduleAt(model.root, path) as LinearLayer, path, index, toggle);
      for (const [name, tensor] of Object.entries(layer.parameters)) parameters.set(`${path}.${name}`, tensor);
      replaceModule(model.root, path, layer.wrapper);
      wrappers.push({ path, wrapper: layer.wrapper });
    });
  } catch (cause) {
    for (const { path, wrapper } of wrappers) unwrap(model.root, path, wrapper);
    for (const tensor of parameters.values()) tensor.dispose();
    for (const copy of copies) copy.dispose();
    throw cause;
  }
  return {
    paths,
    parts: { parameters, wrappers, toggle, copies },
    savedFields: () => ({
      target_modules: savedTargets(
        config.target_modules,
        paths,
        candidates.map(({ path }) => path),
      ),
      fan_in_fan_out: wrappers.some(({ wrapper }) => (layerUnder(wrapper) as Linear).transposed),
    }),
  };
}

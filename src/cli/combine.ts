import { Command, InvalidArgumentError, Option } from 'commander';
import { toWire } from '../base/index.ts';
import { combinations } from '../methods/index.ts';
import { Session } from '../session/index.ts';
import { count, examples } from './shared.ts';

function number(text: string): number {
  const value = Number(text);
  if (text.trim() === '' || !Number.isFinite(value)) throw new InvalidArgumentError('It must be a number.');
  return value;
}

const list = (text: string, before: readonly number[] = []) => [...before, number(text)];

export const combine = () =>
  new Command('combine')
    .description(
      'Combine several adapters of one base into a new one: LoRA by weights, as PEFT’s add_weighted_adapter does; bottleneck adapters as the weighted mean.',
    )
    .argument('<adapters...>', 'directories of the adapters')
    .requiredOption('--weights <numbers...>', 'one weight for each adapter, in their order; any sign', list)
    .addOption(
      new Option(
        '--how <combination>',
        'cat and svd combine the updates BA; the others combine A with A and B with B, or with _svd the updates; default: cat, linear for bottleneck adapters',
      ).choices([...combinations]),
    )
    .requiredOption('--out <dir>', 'new directory for the combined adapter')
    .option('--svd-rank <n>', 'rank after a decomposition; default: the highest of the adapters', count)
    .option(
      '--density <share>',
      'fraction of the values that ties, dare and magnitude_prune keep; default: 0.5',
      number,
    )
    .addOption(
      new Option(
        '--majority-sign-method <method>',
        'ties: whether a sign is elected by the sum of the values (total, the default) or by their number',
      ).choices(['total', 'frequency']),
    )
    .option('--seed <n>', 'seed of the random masks of dare; default: 0', number)
    .option('--json', 'print the result as JSON')
    .addHelpText(
      'after',
      examples(
        'graft combine out/a/adapter out/b/adapter --weights 0.7 0.3 --out both',
        'graft combine a b c --weights 1 1 -0.5 --how ties --density 0.3 --out mixed',
      ),
    )
    .action(async (adapters: string[], options) => {
      await using session = new Session();
      const { weights, how, out, svdRank, density, majoritySignMethod, seed, json } = options;
      const args = { weights, how, out, density, majoritySignMethod, seed, svdRank };
      const result = await session.combine(adapters, args);
      console.log(
        json
          ? JSON.stringify(toWire(result))
          : result.tensors === undefined
            ? `Wrote ${out}: rank ${result.rank}, ${result.modules} modules, by ${result.how}`
            : `Wrote ${out}: the mean of ${result.adapters} adapters, ${result.tensors} tensors`,
      );
      if (!json && result.leftOut.length > 0)
        console.log(`Left out, since they are for one adapter: the settings of ${result.leftOut.join(', ')}`);
    });

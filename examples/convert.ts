/** Writes an adapter in another format, and says what it was and what became of it. */
import { convertAdapter, formatOf, readAdapterConfig } from 'graft-llm';

const [adapter, to, out] = process.argv.slice(2);
if (!adapter || (to !== 'peft' && to !== 'adapterhub' && to !== 'mlx') || !out) {
  console.error('usage: node tools/run.cjs examples/convert.ts ADAPTER_DIR peft|adapterhub|mlx OUT_DIR');
  process.exit(2);
}

// What a format cannot say exactly is refused, with the reason.
const { from, layers } = convertAdapter(adapter, out, to);
console.log(`${out}: ${layers} layers, from ${from} to ${formatOf(out)}`);

// Only PEFT's and AdapterHub's layouts go on a model of Graft; mlx-lm's is for Apple's machines.
if (to === 'peft')
  console.log(
    readAdapterConfig(out)
      .parts.map(({ choice }) => choice.type)
      .join(' + '),
  );

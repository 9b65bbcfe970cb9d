import type { BottleneckRun, Model, Port, Prefix, Prompt, Run, RunActivation, SublayerOutput } from '../../nn/index.ts';
import { ops, type Tensor } from '../../tensor/index.ts';
import type { PlainBottleneck, Sublayer } from '../shared/index.ts';

/** What one adapter adds to the computation, in the order of its methods. */
export type AdapterPorts = readonly Omit<Port, 'enabled'>[];

/** A bottleneck with W_up transposed: b [R, C]. */
export type HeldBottleneck = Pick<PlainBottleneck, 'input' | 'f' | 'scaling'> &
  Omit<BottleneckRun, 'start' | 'end' | 'scaling'>;

interface PortEntry {
  readonly ports: AdapterPorts;
  readonly prompt: Prompt | undefined;
  readonly prefix: Prefix | undefined;
  /** By block and place. */
  readonly bottlenecks: ReadonlyMap<string, HeldBottleneck>;
}

/** Returns several prompts as one. */
function joinedPrompt(prompts: readonly Prompt[]): Prompt | undefined {
  if (prompts.length < 2) return prompts[0];
  return {
    length: prompts.reduce((sum, { length }) => sum + length, 0),
    readsTasks: prompts.some(({ readsTasks }) => readsTasks),
    vectors: (rows) => ops.cat(prompts.map((prompt) => prompt.vectors(rows))),
  };
}

/** Returns several prefixes as one. */
function joinedPrefix(prefixes: readonly Prefix[]): Prefix | undefined {
  if (prefixes.length < 2) return prefixes[0];
  return {
    length: prefixes.reduce((sum, { length }) => sum + length, 0),
    open() {
      const opened = prefixes.map((prefix) => prefix.open());
      return (layer) => {
        const parts = opened.map((at) => at(layer));
        return { k: ops.cat(parts.map(({ k }) => k)), v: ops.cat(parts.map(({ v }) => v)) };
      };
    },
  };
}

/** One port for all adapters that work through ports: each run of rows goes through those of its adapter. */
export class PortBank implements Port {
  readonly #entries = new Map<number, PortEntry>();
  readonly #model: Pick<Model, 'ports' | 'kernels'>;

  constructor(model: Pick<Model, 'ports' | 'kernels'>) {
    this.#model = model;
  }

  get #ports() {
    return this.#model.ports;
  }

  get enabled(): boolean {
    return this.#entries.size > 0;
  }

  set(adapter: number, ports: AdapterPorts, bottlenecks: ReadonlyMap<string, HeldBottleneck>): void {
    const prompt = joinedPrompt(ports.flatMap((port) => port.prompt ?? []));
    const prefix = joinedPrefix(ports.flatMap((port) => port.prefix ?? []));
    this.#entries.set(adapter, { ports, prompt, prefix, bottlenecks });
  }

  delete(adapter: number): void {
    this.#entries.delete(adapter);
  }

  promptOf(adapter: number): Prompt | undefined {
    return this.#entries.get(adapter)?.prompt;
  }

  prefixOf(adapter: number): Prefix | undefined {
    return this.#entries.get(adapter)?.prefix;
  }

  afterEmbedding(x: Tensor): Tensor {
    return this.#changed(
      x,
      (port) => port.afterEmbedding,
      (ports, rows) => ports.reduce((y, port) => port.afterEmbedding?.(y) ?? y, rows),
    );
  }

  afterFinalNorm(x: Tensor): Tensor {
    return this.#changed(
      x,
      (port) => port.afterFinalNorm,
      (ports, rows) => ports.reduceRight((y, port) => port.afterFinalNorm?.(y) ?? y, rows),
    );
  }

  afterAttention(output: SublayerOutput): Tensor {
    return this.#afterSublayer(output, 'afterAttention');
  }

  afterMlp(output: SublayerOutput): Tensor {
    return this.#afterSublayer(output, 'afterMlp');
  }

  #afterSublayer(output: SublayerOutput, place: Sublayer): Tensor {
    return this.#throughBottlenecks(output, place, this.#throughPorts(output, place));
  }

  /** Returns `delta` [N, C] with the rows changed whose adapters have bottlenecks here. */
  #throughBottlenecks(output: SublayerOutput, place: Sublayer, delta: Tensor): Tensor {
    const groups = new Map<string, { input: HeldBottleneck['input']; f: RunActivation; runs: BottleneckRun[] }>();
    for (const { adapter, start, end } of this.#ports.runs) {
      const bottleneck = this.#entries.get(adapter)?.bottlenecks.get(`${output.layer}.${place}`);
      if (!bottleneck) continue;
      const { input, f, ...numbers } = bottleneck;
      const group = groups.get(`${input} ${f}`) ?? { input, f, runs: [] };
      group.runs.push({ start, end, ...numbers });
      groups.set(`${input} ${f}`, group);
    }
    if (groups.size === 0) return delta;
    const y = delta === output.delta ? ops.clone(delta) : delta;
    for (const { input, f, runs } of groups.values())
      this.#model.kernels.addBottleneckRuns(y, inputOf(output, input), f, runs);
    return y;
  }

  #throughPorts(output: SublayerOutput, place: Sublayer): Tensor {
    return this.#changed(
      output.delta,
      (port) => port[place],
      (ports, rows, run) => {
        const own = outputOfRun(output, run);
        // A norm in `output` may be a bank itself, and then sees these rows alone.
        return this.#ports.within(run.adapter, own.rowStarts, () =>
          ports.reduce((delta, port) => port[place]?.({ ...own, delta }) ?? delta, rows),
        );
      },
    );
  }

  /** Returns x [N, C] with the rows of those runs changed whose adapters have something to do with it. */
  #changed(
    x: Tensor,
    concerns: (port: AdapterPorts[number]) => unknown,
    change: (ports: AdapterPorts, rows: Tensor, run: Run) => Tensor,
  ): Tensor {
    if (this.#ports.runs.length === 0) return x;
    const parts: Tensor[] = [];
    let at = 0;
    for (const run of this.#ports.runsFor(x.size(0))) {
      const ports = this.#entries.get(run.adapter)?.ports;
      if (!ports?.some(concerns)) continue;
      if (at < run.start) parts.push(ops.narrow(x, 0, at, run.start - at));
      parts.push(change(ports, ops.narrow(x, 0, run.start, run.end - run.start), run));
      at = run.end;
    }
    if (at === 0) return x;
    if (at < x.size(0)) parts.push(ops.narrow(x, 0, at, x.size(0) - at));
    return parts.length === 1 ? parts[0]! : ops.cat(parts);
  }
}

/** Returns what a bottleneck reads [N, C]. */
function inputOf({ delta, residual, norm }: SublayerOutput, input: HeldBottleneck['input']): Tensor {
  if (input === 'delta') return delta;
  if (input === 'residual') return residual;
  const sum = ops.add(delta, residual);
  return input === 'norm' ? norm!(sum) : sum;
}

/** Returns what a sublayer computed for the rows of one run. */
function outputOfRun(output: SublayerOutput, { start, end }: Run): SublayerOutput {
  const rows = (t: Tensor) => ops.narrow(t, 0, start, end - start);
  const rowStarts = output.rowStarts.filter((row) => row >= start && row <= end).map((row) => row - start);
  return { ...output, delta: rows(output.delta), residual: rows(output.residual), rowStarts };
}

/** Small charts as SVG text. Colours come from the page's style: `c0` to `c11` for series, `axis`, `grid`, `label`. */

const escaped = (text: string) => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('"', '&quot;');

/** Round numbers that divide a span into a handful of parts. */
export function ticks(low: number, high: number): number[] {
  const rough = (high - low || 1) / 5;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * unit).find((s) => s >= rough)!;
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) => (first + i) * step);
}

const number = (x: number) => String(+x.toPrecision(3));

export interface Bar {
  readonly name: string;
  readonly value: number;
  readonly low: number;
  readonly high: number;
  readonly series: number;
}

/** A dot for each value, with its interval; a dashed line where `mark` is. */
export function dots(bars: readonly Bar[], title: string, mark?: { value: number; name: string }): string {
  const [left, right, row, top] = [130, 24, 26, 12];
  const width = 720;
  const height = top + bars.length * row + 34;
  const all = bars.flatMap(({ low, high }) => [low, high]).concat(mark ? [mark.value] : []);
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const x = (v: number) => left + ((v - low) / (high - low || 1)) * (width - left - right);
  const bottom = top + bars.length * row;
  const grid = ticks(low, high).map(
    (t) =>
      `<line class="grid" x1="${x(t)}" x2="${x(t)}" y1="${top}" y2="${bottom}"/><text class="label" x="${x(t)}" y="${bottom + 16}" text-anchor="middle">${number(t)}</text>`,
  );
  const rows = bars.map(({ name, value, low: a, high: b, series }, i) => {
    const y = top + i * row + row / 2;
    return `<text class="name" x="${left - 10}" y="${y + 4}" text-anchor="end">${escaped(name)}</text><line class="c${series}" x1="${x(a)}" x2="${x(b)}" y1="${y}" y2="${y}" stroke-width="3" stroke-opacity=".45"/><circle class="c${series}" cx="${x(value)}" cy="${y}" r="5"><title>${escaped(name)}: ${number(value)} (${number(a)} to ${number(b)})</title></circle>`;
  });
  const line = mark
    ? `<line class="mark" x1="${x(mark.value)}" x2="${x(mark.value)}" y1="${top}" y2="${bottom}"/><text class="label" x="${x(mark.value)}" y="${bottom + 30}" text-anchor="middle">${escaped(mark.name)}</text>`
    : '';
  return `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${escaped(title)}">${grid.join('')}${line}${rows.join('')}</svg>`;
}

export interface Line {
  readonly name: string;
  readonly values: readonly number[];
  readonly series: number;
}

/** Curves over steps, their names at the right end, moved apart where they would meet. */
export function curves(lines: readonly Line[], title: string): string {
  const [width, height, left, right, top, bottom] = [720, 340, 52, 130, 12, 36];
  const steps = Math.max(...lines.map(({ values }) => values.length));
  const all = lines.flatMap(({ values }) => values).sort((a, b) => a - b);
  // The first steps of a bad start must not flatten all the rest.
  const [low, high] = [all[0]!, all[Math.floor(0.98 * (all.length - 1))]!];
  const x = (i: number) => left + (i / Math.max(1, steps - 1)) * (width - left - right);
  const y = (v: number) => top + (1 - (Math.min(v, high) - low) / (high - low || 1)) * (height - top - bottom);
  const grid = ticks(low, high).map(
    (t) =>
      `<line class="grid" x1="${left}" x2="${width - right}" y1="${y(t)}" y2="${y(t)}"/><text class="label" x="${left - 8}" y="${y(t) + 4}" text-anchor="end">${number(t)}</text>`,
  );
  const under = ticks(1, steps).map(
    (t) => `<text class="label" x="${x(t - 1)}" y="${height - bottom + 18}" text-anchor="middle">${t}</text>`,
  );
  const places = lines
    .map(({ values, series, name }) => ({ series, name, at: y(values.at(-1)!) }))
    .sort((a, b) => a.at - b.at);
  for (let i = 1; i < places.length; i++) places[i]!.at = Math.max(places[i]!.at, places[i - 1]!.at + 14);
  const over = Math.max(0, (places.at(-1)?.at ?? 0) - (height - bottom));
  const names = places.map(
    ({ series, name, at }) =>
      `<text class="name t${series}" x="${width - right + 8}" y="${at - over + 4}">${escaped(name)}</text>`,
  );
  const paths = lines.map(
    ({ values, series, name }) =>
      `<polyline class="c${series}" fill="none" stroke-width="1.8" points="${values.map((v, i) => `${x(i).toFixed(1)},${y(v).toFixed(1)}`).join(' ')}"><title>${escaped(name)}</title></polyline>`,
  );
  const axis = `<text class="label" x="${(left + width - right) / 2}" y="${height - 4}" text-anchor="middle">step</text>`;
  return `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${escaped(title)}">${grid.join('')}${under.join('')}${axis}${paths.join('')}${names.join('')}</svg>`;
}

export { escaped };

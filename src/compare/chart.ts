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

/** 1, 2 and 5 of each power of ten in a span; the powers alone where those would be many. */
function logTicks(low: number, high: number): number[] {
  const first = Math.floor(Math.log10(low));
  const powers = Array.from({ length: Math.ceil(Math.log10(high)) - first + 1 }, (_, i) => 10 ** (first + i));
  const within = (all: readonly number[]) => all.filter((t) => t >= low * (1 - 1e-9) && t <= high * (1 + 1e-9));
  const fine = within(powers.flatMap((power) => [power, 2 * power, 5 * power]));
  return fine.length > 8 ? within(powers) : fine;
}

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
    ? `<line class="mark" x1="${x(mark.value)}" x2="${x(mark.value)}" y1="${top}" y2="${bottom}"/><text class="label" x="${x(mark.value)}" y="${bottom + 30}" text-anchor="${x(mark.value) > width - 80 ? 'end' : 'middle'}">${escaped(mark.name)}</text>`
    : '';
  return `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${escaped(title)}">${grid.join('')}${line}${rows.join('')}</svg>`;
}

export interface Point extends Bar {
  /** Where it stands on the logarithmic axis. */
  readonly size: number;
}

/** Values against sizes, and a line along those that nothing smaller reaches. @param points the best first */
export function sizes(points: readonly Point[], title: string, axis: string): string {
  const [width, height, left, right, top, bottom] = [720, 330, 52, 30, 14, 44];
  const [small, large] = [Math.min(...points.map((p) => p.size)) / 1.6, Math.max(...points.map((p) => p.size)) * 1.6];
  const [low, high] = [Math.min(...points.map((p) => p.low)), Math.max(...points.map((p) => p.high))];
  const x = (v: number) => left + (Math.log(v / small) / Math.log(large / small)) * (width - left - right);
  const y = (v: number) => top + (1 - (v - low) / (high - low || 1)) * (height - top - bottom);
  const grid = ticks(low, high).map(
    (t) =>
      `<line class="grid" x1="${left}" x2="${width - right}" y1="${y(t)}" y2="${y(t)}"/><text class="label" x="${left - 8}" y="${y(t) + 4}" text-anchor="end">${number(t)}</text>`,
  );
  const under = logTicks(small, large).map(
    (t) =>
      `<text class="label" x="${x(t)}" y="${height - bottom + 18}" text-anchor="middle">${t.toLocaleString('en')}</text>`,
  );
  const best = points.filter((p, i) => points.slice(0, i).every(({ size }) => size > p.size));
  const front = `<polyline class="mark" fill="none" points="${best.map((p) => `${x(p.size)},${y(p.value)}`).join(' ')}"/>`;
  const taken = points.map((p): Box => [x(p.size) - 6, y(p.value) - 6, x(p.size) + 6, y(p.value) + 6]);
  for (const [i, b] of best.entries()) {
    const a = best[Math.max(0, i - 1)]!;
    for (let t = 0; t < 1; t += 1 / 24) {
      const [at, high] = [x(a.size) + t * (x(b.size) - x(a.size)), y(a.value) + t * (y(b.value) - y(a.value))];
      taken.push([at - 4, high - 2, at + 4, high + 2]);
    }
  }
  const dots = points.map((p) => {
    const [cx, cy] = [x(p.size), y(p.value)];
    const long = 7 * p.name.length;
    // Beside its dot where there is room, else a little above or below.
    const places = [0, -13, 13, -26, 26].flatMap((dy): Box[] => [
      [cx + 9, cy + dy - 7, cx + 9 + long, cy + dy + 7],
      [cx - 9 - long, cy + dy - 7, cx - 9, cy + dy + 7],
    ]);
    const inside = places.filter(([a, b, c, d]) => a >= left && b >= 0 && c <= width && d <= height - bottom);
    const covered = (box: Box) => taken.reduce((sum, other) => sum + overlap(box, other), 0);
    const [place] = inside.sort((a, b) => covered(a) - covered(b)) as [Box];
    taken.push(place);
    return `<line class="c${p.series}" x1="${cx}" x2="${cx}" y1="${y(p.low)}" y2="${y(p.high)}" stroke-width="2" stroke-opacity=".3"/><circle class="c${p.series}" cx="${cx}" cy="${cy}" r="5"><title>${escaped(p.name)}: ${number(p.value)} with ${p.size.toLocaleString('en')}</title></circle><text class="name t${p.series}" x="${place[0] > cx ? place[0] : place[2]}" y="${place[1] + 11}" text-anchor="${place[0] > cx ? 'start' : 'end'}">${escaped(p.name)}</text>`;
  });
  const named = `<text class="label" x="${(left + width - right) / 2}" y="${height - 6}" text-anchor="middle">${escaped(axis)}</text>`;
  return `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${escaped(title)}">${grid.join('')}${under.join('')}${named}${front}${dots.join('')}</svg>`;
}

/** Left, top, right, bottom. */
type Box = readonly [number, number, number, number];

const overlap = (a: Box, b: Box) =>
  Math.max(0, Math.min(a[2], b[2]) - Math.max(a[0], b[0])) * Math.max(0, Math.min(a[3], b[3]) - Math.max(a[1], b[1]));

export interface Line {
  readonly name: string;
  readonly values: readonly number[];
  readonly series: number;
}

/** Curves of positive values over steps, on a logarithmic axis; names at the right end, moved apart where they would meet. */
export function curves(lines: readonly Line[], title: string): string {
  const [width, height, left, right, top, bottom] = [720, 340, 52, 130, 12, 36];
  const steps = Math.max(...lines.map(({ values }) => values.length));
  const all = lines.flatMap(({ values }) => values).sort((a, b) => a - b);
  // A bad start, or an end with nothing left to learn, must not flatten all the rest.
  const share = (of: number) => all[Math.round(of * (all.length - 1))]!;
  const high = share(0.99) || 1;
  const low = Math.max(share(0.002), high / 1e4);
  const x = (i: number) => left + (i / Math.max(1, steps - 1)) * (width - left - right);
  const y = (v: number) =>
    top +
    (1 - Math.log(Math.min(Math.max(v, low), high) / low) / (Math.log(high / low) || 1)) * (height - top - bottom);
  const grid = logTicks(low, high).map(
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

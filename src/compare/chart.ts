/** Charts as SVG text. The page's style gives them colours: `s0`, `s1` … for methods, `axis`, `grid`, `label`, `mark`. */

export const escaped = (text: string) =>
  text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('"', '&quot;');

/** Units of the drawing: at the page's full width, one is a pixel. */
const width = 1080;

/** Returns round numbers that divide a range into at most about so many parts. */
export function ticks(low: number, high: number, parts: number): number[] {
  const roughStep = (high - low || 1) / parts;
  const power = 10 ** Math.floor(Math.log10(roughStep));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= roughStep)!;
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) => (first + i) * step);
}

/** Returns 1, 2 and 5 of each power of ten in a range; the powers alone where those are many. */
function logTicks(low: number, high: number): number[] {
  const first = Math.floor(Math.log10(low));
  const powers = Array.from({ length: Math.ceil(Math.log10(high)) - first + 1 }, (_, i) => 10 ** (first + i));
  const inRange = (values: readonly number[]) => values.filter((t) => t >= low * (1 - 1e-9) && t <= high * (1 + 1e-9));
  const fine = inRange(powers.flatMap((power) => [power, 2 * power, 5 * power]));
  return fine.length > 8 ? inRange(powers) : fine;
}

const short = (x: number) => String(+x.toPrecision(3));

/** Coordinates need no more than tenths of a pixel. */
const at = (x: number) => String(Math.round(10 * x) / 10);

type Anchor = 'start' | 'middle' | 'end';

const text = (x: number, y: number, content: string, style = 'label', anchor: Anchor = 'start') =>
  `<text class="${style}" x="${at(x)}" y="${at(y)}" text-anchor="${anchor}">${escaped(content)}</text>`;

const line = (x1: number, y1: number, x2: number, y2: number, style: string) =>
  `<line class="${style}" x1="${at(x1)}" x2="${at(x2)}" y1="${at(y1)}" y2="${at(y2)}"/>`;

const dot = (x: number, y: number, series: number, title: string) =>
  `<circle class="s${series}" cx="${at(x)}" cy="${at(y)}" r="5"><title>${escaped(title)}</title></circle>`;

const svg = (height: number, title: string, parts: readonly string[]) =>
  `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${escaped(title)}">${parts.join('')}</svg>`;

/** A measured value with its confidence interval. */
export interface Measured {
  readonly name: string;
  readonly value: number;
  readonly low: number;
  readonly high: number;
  /** Number of the method's colour. */
  readonly series: number;
}

/** The range of all intervals, a little wider: an axis begins where the values are. */
function rangeOf(values: readonly Measured[]): readonly [number, number] {
  const [low, high] = [Math.min(...values.map((v) => v.low)), Math.max(...values.map((v) => v.high))];
  const margin = 0.03 * (high - low) || 0.5;
  return [low - margin, high + margin];
}

export interface IntervalRow extends Measured {
  /** The value and its interval in words, at the right end. */
  readonly label: string;
  /** The row has a shaded background. */
  readonly shaded: boolean;
}

/**
 * Draws a row for each value: a dot, its interval as a line, and the label.
 * @param reference a value to compare with: a dashed line, or a note at the end of the axis where it is out of range
 */
export function intervalChart(
  rows: readonly IntervalRow[],
  title: string,
  reference?: { readonly value: number; readonly label: string },
): string {
  const [left, right, rowHeight, top] = [150, 190, 26, 8];
  const bottom = top + rows.length * rowHeight;
  const [low, high] = rangeOf(rows);
  const x = (v: number) => left + ((v - low) / (high - low)) * (width - left - right);
  const shades = rows.map(({ shaded }, i) =>
    shaded ? `<rect class="shade" x="0" y="${top + i * rowHeight}" width="${width}" height="${rowHeight}"/>` : '',
  );
  const grid = ticks(low, high, 9).flatMap((t) => [
    line(x(t), top, x(t), bottom, 'grid'),
    text(x(t), bottom + 18, short(t), 'label', 'middle'),
  ]);
  const body = rows.flatMap((row, i) => {
    const y = top + (i + 0.5) * rowHeight;
    return [
      text(left - 14, y + 4.5, row.name, 'name', 'end'),
      line(x(row.low), y, x(row.high), y, `s${row.series} interval`),
      dot(x(row.value), y, row.series, `${row.name}: ${row.label}`),
      text(width - right + 14, y + 4.5, row.label, 'name'),
    ];
  });
  const noteY = bottom + 38;
  const note = (value: number, label: string) => {
    if (value < low) return text(left, noteY, `◂ ${label}`);
    if (value > high) return text(width - right, noteY, `${label} ▸`, 'label', 'end');
    return line(x(value), top, x(value), bottom, 'mark') + text(x(value), noteY, label, 'label', 'middle');
  };
  const reached = reference ? [note(reference.value, reference.label)] : [];
  return svg(bottom + (reference ? 46 : 26), title, [...shades, ...grid, ...reached, ...body]);
}

export interface SizedValue extends Measured {
  /** Position on the logarithmic axis, above 0. */
  readonly size: number;
}

/** Left, top, right, bottom. */
type Box = readonly [number, number, number, number];

const overlap = (a: Box, b: Box) =>
  Math.max(0, Math.min(a[2], b[2]) - Math.max(a[0], b[0])) * Math.max(0, Math.min(a[3], b[3]) - Math.max(a[1], b[1]));

/**
 * Draws values against sizes, and the Pareto frontier: a line through the points that no smaller one reaches.
 * @param points the best value first
 */
export function sizeChart(points: readonly SizedValue[], title: string, axisTitle: string): string {
  const [height, left, right, top, bottom] = [380, 56, 24, 14, 48];
  const sizes = points.map((p) => p.size);
  const [smallest, largest] = [Math.min(...sizes) / 1.6, Math.max(...sizes) * 1.6];
  const [low, high] = rangeOf(points);
  const x = (v: number) => left + (Math.log(v / smallest) / Math.log(largest / smallest)) * (width - left - right);
  const y = (v: number) => top + (1 - (v - low) / (high - low)) * (height - top - bottom);
  const axes = [
    ...ticks(low, high, 6).flatMap((t) => [
      line(left, y(t), width - right, y(t), 'grid'),
      text(left - 10, y(t) + 4, short(t), 'label', 'end'),
    ]),
    ...logTicks(smallest, largest).map((t) =>
      text(x(t), height - bottom + 20, t.toLocaleString('en'), 'label', 'middle'),
    ),
    text((left + width - right) / 2, height - 6, axisTitle, 'label', 'middle'),
  ];
  const frontier = points.filter((p, i) => points.slice(0, i).every(({ size }) => size > p.size));
  const frontierLine = `<polyline class="mark" points="${frontier.map((p) => `${at(x(p.size))},${at(y(p.value))}`).join(' ')}"/>`;
  const occupied = [
    ...points.map((p): Box => [x(p.size) - 6, y(p.value) - 6, x(p.size) + 6, y(p.value) + 6]),
    ...frontier.slice(1).flatMap((end, i) => alongLine(frontier[i]!, end, x, y)),
  ];
  const drawn = points.map((p) => {
    const [cx, cy] = [x(p.size), y(p.value)];
    const others = points.filter((other) => other !== p).map((other) => [x(other.size), y(other.value)] as const);
    const place = freePlace([cx, cy], 7 * p.name.length, others, occupied, [left, 0, width, height - bottom]);
    occupied.push(place);
    const onTheRight = place[0] > cx;
    return [
      line(cx, y(p.low), cx, y(p.high), `s${p.series} thin interval`),
      dot(cx, cy, p.series, `${p.name}: ${short(p.value)} with ${p.size.toLocaleString('en')}`),
      text(onTheRight ? place[0] : place[2], place[1] + 12, p.name, `name s${p.series}`, onTheRight ? 'start' : 'end'),
    ];
  });
  return svg(height, title, [...axes, frontierLine, ...drawn.flat()]);
}

/** Small boxes along the line between two points, which labels keep clear of. */
function alongLine(
  from: SizedValue,
  to: SizedValue,
  x: (size: number) => number,
  y: (value: number) => number,
): readonly Box[] {
  return Array.from({ length: 24 }, (_, i): Box => {
    const share = i / 24;
    const cx = x(from.size) + share * (x(to.size) - x(from.size));
    const cy = y(from.value) + share * (y(to.value) - y(from.value));
    return [cx - 4, cy - 2, cx + 4, cy + 2];
  });
}

type Place = readonly [x: number, y: number];

/**
 * The place for a label of this length next to its point: right or left of it, level or a little off. It is the one that covers
 * least of what is occupied, and where no other point is nearer.
 */
function freePlace(
  [cx, cy]: Place,
  length: number,
  others: readonly Place[],
  occupied: readonly Box[],
  bounds: Box,
): Box {
  const places = [0, -14, 14, -28, 28, -42, 42].flatMap((dy): Box[] => [
    [cx + 10, cy + dy - 8, cx + 10 + length, cy + dy + 8],
    [cx - 10 - length, cy + dy - 8, cx - 10, cy + dy + 8],
  ]);
  const inBounds = places.filter(
    (p) => p[0] >= bounds[0] && p[1] >= bounds[1] && p[2] <= bounds[2] && p[3] <= bounds[3],
  );
  const cost = (box: Box) => {
    const [endX, endY] = [box[0] > cx ? box[0] : box[2], (box[1] + box[3]) / 2];
    const own = Math.hypot(endX - cx, endY - cy);
    const misleading = others.some(([ox, oy]) => Math.hypot(endX - ox, endY - oy) < own);
    return occupied.reduce((sum, other) => sum + overlap(box, other), misleading ? 200 : 0);
  };
  return (inBounds.length > 0 ? inBounds : places).sort((a, b) => cost(a) - cost(b))[0]!;
}

export interface Curve {
  readonly name: string;
  readonly values: readonly number[];
  readonly series: number;
  /** It is drawn before anyone chooses. */
  readonly shown: boolean;
}

const curveArea = { height: 400, left: 56, right: 130, top: 14, bottom: 44 };

/**
 * Draws curves of positive values over steps, on a logarithmic axis, each with its name at the right end. Of a curve that is not
 * shown at first, the parts have the attribute `hidden`; `curveScript` shows and hides them.
 */
export function curveChart(curves: readonly Curve[], title: string): string {
  const { height, left, right, top, bottom } = curveArea;
  const steps = Math.max(...curves.map(({ values }) => values.length));
  const sorted = curves.flatMap(({ values }) => values).sort((a, b) => a - b);
  // A bad start, or a loss near 0 at the end, must not flatten everything else.
  const quantile = (share: number) => sorted[Math.round(share * (sorted.length - 1))]!;
  const high = quantile(0.99) || 1;
  const low = Math.max(quantile(0.002), high / 1e4);
  const x = (step: number) => left + (step / Math.max(1, steps - 1)) * (width - left - right);
  const y = (v: number) =>
    top +
    (1 - Math.log(Math.min(Math.max(v, low), high) / low) / (Math.log(high / low) || 1)) * (height - top - bottom);
  const axes = [
    ...logTicks(low, high).flatMap((t) => [
      line(left, y(t), width - right, y(t), 'grid'),
      text(left - 10, y(t) + 4, short(t), 'label', 'end'),
    ]),
    ...ticks(1, steps, 9).map((t) => text(x(t - 1), height - bottom + 20, String(t), 'label', 'middle')),
    text((left + width - right) / 2, height - 4, 'step', 'label', 'middle'),
  ];
  const drawn = curves.flatMap(({ name, values, series, shown }) => {
    const points = values.map((v, i) => `${at(x(i))},${at(y(v))}`).join(' ');
    const end = y(values.at(-1)!);
    const attributes = `data-curve="${series}"${shown ? '' : ' hidden'}`;
    return [
      `<polyline class="s${series}" ${attributes} points="${points}"><title>${escaped(name)}</title></polyline>`,
      `<text class="name s${series}" ${attributes} data-y="${at(end)}" x="${width - right + 10}" y="${at(end + 4)}">${escaped(name)}</text>`,
    ];
  });
  return svg(height, title, [...axes, ...drawn]);
}

/** Shows the curves whose boxes are checked, and moves their names apart where they would cover one another. */
export const curveScript = `
for (const figure of document.querySelectorAll('figure.curves')) {
  const boxes = [...figure.querySelectorAll('input')];
  const update = () => {
    const names = [];
    for (const box of boxes) {
      for (const part of figure.querySelectorAll('[data-curve="' + box.value + '"]')) {
        part.toggleAttribute('hidden', !box.checked);
        if (box.checked && part.dataset.y) names.push({ part, y: Number(part.dataset.y) });
      }
    }
    names.sort((a, b) => a.y - b.y);
    for (let i = 1; i < names.length; i++) names[i].y = Math.max(names[i].y, names[i - 1].y + 16);
    let limit = ${curveArea.height - curveArea.bottom - 4};
    for (const name of names.reverse()) {
      name.y = Math.min(name.y, limit);
      limit = name.y - 16;
      name.part.setAttribute('y', name.y + 4);
    }
  };
  figure.addEventListener('change', update);
  for (const button of figure.querySelectorAll('button')) {
    button.addEventListener('click', () => {
      for (const box of boxes) box.checked = button.value === 'all' || (button.value === 'few' && box.defaultChecked);
      update();
    });
  }
  update();
}
`;

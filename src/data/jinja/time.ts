const pad = (n: number, length = 2) => String(n).padStart(length, '0');
const dateName = (date: Date, options: Intl.DateTimeFormatOptions) =>
  new Intl.DateTimeFormat('en-US', options).format(date);

const DAY = 86_400_000;
const dayOfYear = (d: Date) =>
  Math.round((Date.UTC(d.getFullYear(), d.getMonth(), d.getDate()) - Date.UTC(d.getFullYear(), 0, 1)) / DAY) + 1;
/** Weeks of the year before a date, the first of which begins with the first Sunday (0) or Monday (1). */
const week = (d: Date, firstDay: number) => Math.floor((dayOfYear(d) + 6 - ((d.getDay() - firstDay + 7) % 7)) / 7);
/** The year and week of ISO 8601. */
function isoWeek(d: Date): [year: number, week: number] {
  const thursday = new Date(d.getFullYear(), d.getMonth(), d.getDate() - ((d.getDay() + 6) % 7) + 3);
  return [thursday.getFullYear(), Math.floor((dayOfYear(thursday) - 1) / 7) + 1];
}

const parts: Readonly<Record<string, (d: Date) => string>> = {
  a: (d) => dateName(d, { weekday: 'short' }),
  A: (d) => dateName(d, { weekday: 'long' }),
  b: (d) => dateName(d, { month: 'short' }),
  B: (d) => dateName(d, { month: 'long' }),
  c: (d) => strftime('%a %b %e %H:%M:%S %Y', d),
  C: (d) => pad(Math.floor(d.getFullYear() / 100)),
  d: (d) => pad(d.getDate()),
  D: (d) => strftime('%m/%d/%y', d),
  e: (d) => String(d.getDate()).padStart(2),
  f: (d) => pad(d.getMilliseconds() * 1000, 6),
  F: (d) => strftime('%Y-%m-%d', d),
  g: (d) => pad(isoWeek(d)[0] % 100),
  G: (d) => String(isoWeek(d)[0]),
  h: (d) => dateName(d, { month: 'short' }),
  H: (d) => pad(d.getHours()),
  I: (d) => pad(d.getHours() % 12 || 12),
  j: (d) => pad(dayOfYear(d), 3),
  k: (d) => String(d.getHours()).padStart(2),
  l: (d) => String(d.getHours() % 12 || 12).padStart(2),
  m: (d) => pad(d.getMonth() + 1),
  M: (d) => pad(d.getMinutes()),
  n: () => '\n',
  p: (d) => (d.getHours() < 12 ? 'AM' : 'PM'),
  P: (d) => (d.getHours() < 12 ? 'am' : 'pm'),
  r: (d) => strftime('%I:%M:%S %p', d),
  R: (d) => strftime('%H:%M', d),
  s: (d) => String(Math.floor(d.getTime() / 1000)),
  S: (d) => pad(d.getSeconds()),
  t: () => '\t',
  T: (d) => strftime('%H:%M:%S', d),
  u: (d) => String(d.getDay() || 7),
  U: (d) => pad(week(d, 0)),
  V: (d) => pad(isoWeek(d)[1]),
  w: (d) => String(d.getDay()),
  W: (d) => pad(week(d, 1)),
  x: (d) => strftime('%m/%d/%y', d),
  X: (d) => strftime('%H:%M:%S', d),
  y: (d) => pad(d.getFullYear() % 100),
  Y: (d) => String(d.getFullYear()),
  z: () => '',
  Z: () => '',
  '%': () => '%',
};

/** Local time in the format of Python's `strftime`, in the C locale. */
export const strftime = (format: string, date = new Date()): string =>
  format.replaceAll(/%(-?)([a-zA-Z%])/g, (all, bare: string, part: string) => {
    const text = parts[part]?.(date) ?? all;
    return bare ? text.replace(/^[0 ]+(?=.)/, '') : text;
  });

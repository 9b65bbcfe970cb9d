import { NONE, type Piece } from './trace.ts';
import { type Span, UnclearTurns } from './turns.ts';

/**
 * The spans between marks that the template prints, and the text without these.
 * @param isLearned whether the message of an index, in whose turn the mark is printed, is asked for
 * @throws UnclearTurns for a mark outside of every turn where not all turns are asked for
 */
export function spansOfMarks(
  pieces: readonly Piece[],
  [begin, end]: readonly [string, string],
  isLearned: (index: number) => boolean,
): { text: string; spans: Span[] } {
  let text = '';
  let start: number | undefined;
  const spans: Span[] = [];
  for (const piece of pieces)
    for (const part of piece.text.split(new RegExp(`(${begin}|${end})`))) {
      if (part === begin) {
        if (piece.turn === NONE)
          throw new UnclearTurns('the {% generation %} blocks are outside of a loop over the messages');
        start = isLearned(piece.turn) ? text.length : undefined;
      } else if (part !== end) text += part;
      else if (start !== undefined) {
        if (text.length > start) spans.push([start, text.length]);
        start = undefined;
      }
    }
  return { text, spans };
}

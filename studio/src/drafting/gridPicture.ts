// A grid as one labelled picture.

import { pictureUrl } from '../server/api';
import { labelOf, valueLabels } from './axes';
import type { Grid } from './grids';
import { number, t } from '../i18n';
import { contentOf } from '../state/store';
import type { Content } from '../server/types';

const GAP = 8;
const LABEL = 34;
const MAX_SIDE = 8000;
const LINE = 19;
const MOST_LINES = 4;
const FONT = 'Geist, sans-serif';

/** Draws `grid` as it stands; a cell without a picture stays empty. */
export async function drawGrid(grid: Grid): Promise<Blob> {
  const contents = grid.cells.map((row) => row.map((id) => (id ? contentOf(id).peek() : null)));
  const pictures = contents.flat().flatMap((content) => content?.images[0] ?? []);
  if (!pictures.length) throw new Error('there is no picture yet');
  // A cell holds the widest and the highest of them.
  const cell = {
    width: Math.max(...pictures.map((one) => one.width)),
    height: Math.max(...pictures.map((one) => one.height)),
  };
  const columns = grid.x.values.length;
  const rows = grid.y.values.length;
  const canvas = document.createElement('canvas');
  const measure = canvas.getContext('2d');
  if (!measure) throw new Error('no canvas');
  const [across, down] = [
    valueLabels(grid.x, grid.y.parameter === 'lora'),
    valueLabels(grid.y, grid.x.parameter === 'lora'),
  ];
  const side = down.some((label) => label.length > 14) ? 220 : 130;
  const scale = Math.min(
    Math.max(1, 256 / Math.max(cell.width, cell.height)),
    (MAX_SIDE - side) / (columns * cell.width),
    (MAX_SIDE - 8 * LABEL) / (rows * cell.height),
  );
  const width = Math.round(cell.width * scale);
  const height = Math.round(cell.height * scale);
  canvas.width = side + columns * (width + GAP);
  const heads = across.map((label) => wrapped(measure, label, width, 14, MOST_LINES));
  const sides = down.map((label) => wrapped(measure, label, side - 2 * GAP, 14, MOST_LINES));
  const foot = wrapped(measure, footOf(grid, contents.flat()), canvas.width - 2 * GAP, 13);
  const top = LABEL + Math.max(...heads.map((lines) => lines.length)) * LINE + GAP;
  canvas.height = top + rows * (height + GAP) + foot.length * LINE + GAP;
  const context = canvas.getContext('2d');
  if (!context) throw new Error('no canvas');
  context.fillStyle = '#ffffff';
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = '#1a1a19';
  context.textBaseline = 'middle';
  context.textAlign = 'center';
  /** Lines around (x, y). */
  const write = (lines: string[], x: number, y: number, most: number, size: number) => {
    context.font = `${size}px ${FONT}`;
    lines.forEach((line, n) =>
      context.fillText(line, x, y + (n - (lines.length - 1) / 2) * LINE, most),
    );
  };
  write([labelOf(grid.x)], side + (canvas.width - side) / 2, LABEL / 2, canvas.width - side, 15);
  heads.forEach((lines, column) =>
    write(lines, side + column * (width + GAP) + width / 2, (LABEL + top - GAP) / 2, width, 14),
  );
  write([labelOf(grid.y)], side / 2, LABEL / 2, side - 2 * GAP, 15);
  for (const [row, lines] of sides.entries()) {
    const y = top + row * (height + GAP);
    write(lines, side / 2, y + height / 2, side - 2 * GAP, 14);
    for (let column = 0; column < columns; column++) {
      const picture = contents[row]?.[column]?.images[0];
      if (!picture) continue;
      const answer = await fetch(pictureUrl(picture.url));
      if (!answer.ok) throw new Error(String(answer.status));
      const bitmap = await createImageBitmap(await answer.blob());
      const [w, h] = [picture.width * scale, picture.height * scale];
      const left = side + column * (width + GAP);
      context.drawImage(bitmap, left + (width - w) / 2, y + (height - h) / 2, w, h);
      bitmap.close();
    }
  }
  context.textAlign = 'left';
  const below = canvas.height - (foot.length * LINE) / 2 - GAP / 2;
  write(foot, GAP, below, canvas.width - 2 * GAP, 13);
  return new Promise((resolve, reject) =>
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error('no picture'))), 'image/png'),
  );
}

/** What is the same in every cell: the prompt, and the settings that are on no axis. */
function footOf(grid: Grid, contents: (Content | null)[]): string {
  const of = contents.find((content) => content !== null)?.parameters;
  const on = [grid.x.parameter, grid.y.parameter];
  const facts = of
    ? [
        on.includes('size') ? '' : `${of.width} × ${of.height}`,
        on.includes('steps') || of.steps === null ? '' : `${t('form.steps')} ${of.steps}`,
        on.includes('cfg') || of.cfg === null ? '' : `${t('form.cfg')} ${number(of.cfg, 2)}`,
        on.includes('seed') ? '' : `${t('form.seed')} ${of.seed}`,
      ]
    : [];
  return [grid.prompt, facts.filter(Boolean).join(' · ')].filter(Boolean).join(' — ');
}

/** `text` in lines of at most `most` px; of more than `lines` the last one is cut. */
function wrapped(
  context: CanvasRenderingContext2D,
  text: string,
  most: number,
  size: number,
  lines = Infinity,
): string[] {
  context.font = `${size}px ${FONT}`;
  const fits = (part: string) => context.measureText(part).width <= most;
  const found: string[] = [];
  let line = '';
  // A word that is wider than a line, such as a file's name, is parted where it must be.
  for (const word of text.split(/\s+/).flatMap((one) => (fits(one) ? [one] : [...one].map(glued)))) {
    const longer = line ? line + (word.startsWith(GLUE) ? '' : ' ') + bare(word) : bare(word);
    if (line && !fits(longer)) {
      found.push(line);
      line = bare(word);
    } else line = longer;
  }
  if (line) found.push(line);
  if (found.length <= lines) return found;
  const kept = found.slice(0, lines);
  let last = kept[lines - 1] ?? '';
  while (last && !fits(`${last}…`)) last = last.slice(0, -1);
  return [...kept.slice(0, -1), `${last}…`];
}

/** Before a letter that belongs to the letter before it. */
const GLUE = '\u2060';
const glued = (letter: string, place: number): string => (place ? GLUE : '') + letter;
const bare = (word: string): string => word.replace(GLUE, '');

// A grid as one labelled picture.

import { pictureUrl } from '../server/api';
import { labelOf, type Grid } from './grids';
import { number, t } from '../i18n';
import { contentOf } from '../state/store';
import type { Content } from '../server/types';

const GAP = 8;
const LABEL = 34;
const SIDE = 130;
const MAX_SIDE = 8000;
const FOOT = 20;

/** Draws `grid` as it stands; a cell without a picture stays empty. */
export async function drawGrid(grid: Grid): Promise<Blob> {
  const contents = grid.cells.map((row) => row.map((id) => (id ? contentOf(id).peek() : null)));
  const first = contents.flat().find((content) => content?.images.length)?.images[0];
  if (!first) throw new Error('there is no picture yet');
  const columns = grid.x.values.length;
  const rows = grid.y.values.length;
  const scale = Math.min(
    Math.max(1, 256 / first.width),
    (MAX_SIDE - SIDE) / (columns * first.width),
    (MAX_SIDE - 2 * LABEL) / (rows * first.height),
  );
  const width = Math.round(first.width * scale);
  const height = Math.round(first.height * scale);
  const canvas = document.createElement('canvas');
  canvas.width = SIDE + columns * (width + GAP);
  canvas.height = 2 * LABEL + rows * (height + GAP);
  const words = canvas.getContext('2d');
  const lines = words ? wrapped(words, footOf(grid, contents.flat()), canvas.width - 2 * GAP) : [];
  canvas.height += lines.length * FOOT + GAP;
  const context = canvas.getContext('2d');
  if (!context) throw new Error('no canvas');
  context.fillStyle = '#ffffff';
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = '#1a1a19';
  context.textBaseline = 'middle';
  context.textAlign = 'center';
  const write = (text: string, x: number, y: number, most: number, size: number) => {
    context.font = `${size}px Geist, sans-serif`;
    context.fillText(text, x, y, most);
  };
  write(labelOf(grid.x), SIDE + (canvas.width - SIDE) / 2, LABEL / 2, canvas.width - SIDE, 15);
  grid.x.values.forEach((value, column) =>
    write(number(value, 4), SIDE + column * (width + GAP) + width / 2, 1.5 * LABEL, width, 14),
  );
  write(labelOf(grid.y), SIDE / 2, LABEL, SIDE - 2 * GAP, 15);
  context.textAlign = 'left';
  lines.forEach((line, place) =>
    write(line, GAP, canvas.height - (lines.length - place - 0.5) * FOOT, canvas.width - 2 * GAP, 13),
  );
  context.textAlign = 'center';
  for (const [row, value] of grid.y.values.entries()) {
    const y = 2 * LABEL + row * (height + GAP);
    write(number(value, 4), SIDE / 2, y + height / 2, SIDE - 2 * GAP, 14);
    for (let column = 0; column < columns; column++) {
      const picture = contents[row]?.[column]?.images[0];
      if (!picture) continue;
      const answer = await fetch(pictureUrl(picture.url));
      if (!answer.ok) throw new Error(String(answer.status));
      const bitmap = await createImageBitmap(await answer.blob());
      context.drawImage(bitmap, SIDE + column * (width + GAP), y, width, height);
      bitmap.close();
    }
  }
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
        `${of.width} × ${of.height}`,
        on.includes('steps') || of.steps === null ? '' : `${t('form.steps')} ${of.steps}`,
        on.includes('cfg') || of.cfg === null ? '' : `${t('form.cfg')} ${number(of.cfg, 2)}`,
        on.includes('seed') ? '' : `${t('form.seed')} ${of.seed}`,
      ]
    : [];
  return [grid.prompt, facts.filter(Boolean).join(' · ')].filter(Boolean).join(' — ');
}

function wrapped(context: CanvasRenderingContext2D, text: string, most: number): string[] {
  context.font = '13px Geist, sans-serif';
  const lines: string[] = [];
  let line = '';
  for (const word of text.split(/\s+/)) {
    const longer = line ? `${line} ${word}` : word;
    if (line && context.measureText(longer).width > most) {
      lines.push(line);
      line = word;
    } else line = longer;
  }
  return line ? [...lines, line] : lines;
}

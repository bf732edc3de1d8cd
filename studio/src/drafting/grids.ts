// X/Y grids: one picture for every pair of values of two parameters. The backend keeps them, as
// batches; the cell of a picture is its place in the batch.

import { asAxis, axisFrom, type Axis, type Parameter, type Value } from './axes';
import { asBody, type Draft, type Whole } from './draft';
import { estimate, type Estimate } from './estimate';
import { api } from '../server/api';
import { contentsOf } from '../state/batchList';
import { prependToFeed } from '../state/store';
import { announce } from '../state/tabs';
import { follow } from '../server/live';
import type { Batch, BatchBody, Content } from '../server/types';

export interface Grid {
  id: string;
  /** The same in every cell; null where prompts are an axis. */
  prompt: string | null;
  made: string;
  x: Axis;
  y: Axis;
  /** Row by row; null: not known yet, or deleted. */
  cells: (string | null)[][];
}

export const MAX_CELLS = 100;

export const axesOf = ({ grid }: Batch): [Axis, Axis] | null =>
  grid && [axisFrom(grid.x), axisFrom(grid.y)];

/** Whether an axis says what a cell's picture shows. */
export const isSaid = (axes: Pick<Grid, 'x' | 'y'>): boolean =>
  [axes.x, axes.y].some(({ parameter }) => parameter === 'prompt');

/** A batch with its contents as a grid; null where it is none. */
export function gridOf(batch: Batch, contents: Content[]): Grid | null {
  if (!batch.grid) return null;
  const [x, y] = [axisFrom(batch.grid.x, contents), axisFrom(batch.grid.y, contents)];
  const first = contents.find((one) => one.batch_place === 0);
  const at = new Map(contents.map((one) => [one.batch_place, one.id]));
  return {
    id: batch.batch_id,
    // With words on an axis, the first cell has the ones that are looked for.
    prompt: isSaid({ x, y }) ? null : (first?.prompt ?? batch.prompts[0] ?? ''),
    made: batch.created_at,
    x,
    y,
    cells: y.values.map((_, row) =>
      x.values.map((__, column) => at.get(row * x.values.length + column) ?? null),
    ),
  };
}

/** What all cells take together: a value on an axis may make a cell slower. */
export function estimateGrid(of: Whole, x: Axis, y: Axis): Estimate | null {
  const sum: Estimate = { seconds: 0, usd: 0 };
  for (const yValue of y.values) {
    for (const xValue of x.values) {
      const at: Partial<Record<Parameter, Value>> = {
        [x.parameter]: xValue,
        [y.parameter]: yValue,
      };
      const steps = typeof at.steps === 'number' ? at.steps : of.steps;
      const [width = of.width, height = of.height] =
        typeof at.size === 'string' ? at.size.split('x').map(Number) : [];
      const one = estimate({ ...of, width, height, steps, num_images: 1 });
      if (!one) return null;
      sum.seconds += one.seconds;
      sum.usd = one.usd === null || sum.usd === null ? null : sum.usd + one.usd;
    }
  }
  return sum;
}

/** Ask for all cells at once; returns the batch's id. */
export async function startGrid(of: Draft, x: Axis, y: Axis): Promise<string> {
  const { prompt, ...settings } = asBody(of);
  const body: BatchBody = {
    ...settings,
    num_images: 1,
    ...(isSaid({ x, y }) ? {} : { prompts: [prompt ?? ''] }),
    grid: { x: asAxis(x), y: asAxis(y) },
  };
  return (await api.batch(body)).batch_id;
}

/** A grid with its contents, which are followed from here on. */
export async function loadGrid(id: string): Promise<Grid | null> {
  const batch = await api.readBatch(id);
  const contents = await contentsOf(id);
  follow(...[...contents].reverse());
  return gridOf(batch, contents);
}

/** Show what was accepted just now among the newest pictures, in all tabs. */
export function noteNew(grid: Grid): void {
  const ids = grid.cells.flat().filter((one) => one !== null);
  prependToFeed(ids);
  announce({ kind: 'made', ids });
}

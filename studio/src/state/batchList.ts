// The lists of batches, page by page, and of grids; and what stands in the form of the next grid.

import { signal } from '@preact/signals';
import { api } from '../server/api';
import { tellProblem } from './store';
import type { Axes } from '../drafting/axes';
import type { Batch, Content } from '../server/types';

const SHOWN_AT_ONCE = 20;

// Newest first, as far as they were asked for; null until the first page is there.
export const listed = signal<Batch[] | null>(null);
export const next = signal<string | null>(null);

export async function listMore(): Promise<void> {
  try {
    const page = await api.batches(SHOWN_AT_ONCE, next.value, false);
    const before = listed.value ?? [];
    const known = new Set(before.map((batch) => batch.batch_id));
    listed.value = [...before, ...page.items.filter((batch) => !known.has(batch.batch_id))];
    next.value = page.next_cursor;
  } catch (error) {
    tellProblem(error);
  }
}

/** From the start: batches may have been made elsewhere since. */
export async function listAnew(): Promise<void> {
  next.value = null;
  listed.value = null;
  await listMore();
}

const GRIDS = 12;
/** The newest grids, as the backend lists them; null until it has. */
export const grids = signal<Batch[] | null>(null);
/** What is written for the next grid; null: nothing yet. */
export const gridForm = signal<Axes | null>(null);

export async function listGrids(): Promise<void> {
  try {
    grids.value = (await api.batches(GRIDS, null, true)).items;
  } catch (error) {
    tellProblem(error);
  }
}

export function clearBatches(): void {
  listed.value = null;
  next.value = null;
  grids.value = null;
  gridForm.value = null;
}

const PAGE = 200;

/** All contents of a batch, page by page. */
export async function contentsOf(batch_id: string): Promise<Content[]> {
  const found: Content[] = [];
  let cursor: string | null = null;
  do {
    const page = await api.contents({ batch_id, limit: PAGE, cursor });
    found.push(...page.items);
    cursor = page.next_cursor;
  } while (cursor);
  return found;
}

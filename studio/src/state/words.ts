// The owner's styles and wildcards, which the form offers.

import { signal } from '@preact/signals';
import { api } from '../server/api';
import type { Style, Wildcard } from '../server/types';
import { announce } from './tabs';

/** By name; null until they were read. */
export const styles = signal<Style[] | null>(null);
export const wildcards = signal<Wildcard[] | null>(null);

export async function refreshWords(): Promise<void> {
  try {
    const [found, lists] = await Promise.all([api.styles(), api.wildcards()]);
    styles.value = found.items;
    wildcards.value = lists.items;
  } catch {
    // The form does without; the manager reads again, and tells.
  }
}

/** Read again what was changed here; the other tabs do, too. */
export async function wordsChanged(): Promise<void> {
  await refreshWords();
  announce({ kind: 'library' });
}

export function clearWords(): void {
  styles.value = wildcards.value = null;
}

// What the form held before, so that nothing written is lost: the last drafts that were sent or
// replaced, newest first.

import { signal } from '@preact/signals';
import type { Draft } from '../drafting/draft';
import { recall, remember } from './memory';

const KEPT = 50;

export interface Past {
  at: string;
  draft: Draft;
}

export const past = signal<Past[]>(recall<Past[]>('history', []));

const same = (a: Draft, b: Draft): boolean =>
  JSON.stringify({ ...a, seed: null }) === JSON.stringify({ ...b, seed: null });

/** Note a draft, unless it is blank or the newest one already. */
export function rememberDraft(draft: Draft): void {
  if (!draft.prompt.trim()) return;
  const others = past.value.filter((one) => !same(one.draft, draft));
  past.value = [{ at: new Date().toISOString(), draft }, ...others].slice(0, KEPT);
  remember('history', past.value);
}

export function clearHistory(): void {
  past.value = [];
  remember('history', []);
}

// What every view looks at: who is signed in, the model, the library, and contents by id.

import { signal, type Signal } from '@preact/signals';
import { api, asProblem, setListeners, type Problem } from './api';
import { t, tMaybe } from './i18n';
import { isFinal, type Avatar, type Content, type Lora, type Model, type Session } from './types';

export type Gate = 'opening' | 'sign-in' | 'open';

export const gate = signal<Gate>('opening');
export const session = signal<Session | null>(null);
export const model = signal<Model | null>(null);
export const loras = signal<Lora[] | null>(null);
export const avatars = signal<Avatar[] | null>(null);
/** Newest contents first, unfiltered; null until they were read. */
export const feed = signal<string[] | null>(null);
export const reached = signal(true);
export const notice = signal<{ text: string; isError: boolean; number: number } | null>(null);

const contents = new Map<string, Signal<Content | null>>();

/** The content with this id; null while it is not known. */
export function contentOf(id: string): Signal<Content | null> {
  let kept = contents.get(id);
  if (!kept) contents.set(id, (kept = signal<Content | null>(null)));
  return kept;
}

/** Note what a content is now. An end stays: an answer from before it may come after it. */
export function keep(content: Content): void {
  const kept = contentOf(content.id);
  const known = kept.peek();
  if (known && isFinal(known.status) && !isFinal(content.status)) return;
  kept.value = content;
}

export function prependToFeed(ids: string[]): void {
  feed.value = [...ids, ...(feed.value ?? []).filter((id) => !ids.includes(id))];
}

export function forget(id: string): void {
  contentOf(id).value = null;
  feed.value = (feed.value ?? []).filter((other) => other !== id);
}

let notices = 0;

export function tell(text: string, isError = false): void {
  notice.value = { text, isError, number: ++notices };
}

/** An error in words: what the page knows of its code, then what the server says. */
export function explain(problem: Problem): string {
  const lead = tMaybe(`error.${problem.code}`, '');
  return [lead, problem.message].filter(Boolean).join(' ') || t('error.unknown');
}

export function tellProblem(error: unknown): void {
  tell(explain(asProblem(error)), true);
}

setListeners(
  () => {
    gate.value = 'sign-in';
  },
  (now) => {
    reached.value = now;
  },
);

/** Read again what the forms need; errors are told. */
export async function refreshLibrary(): Promise<void> {
  try {
    const [found, characters] = await Promise.all([api.loras(), api.avatars()]);
    loras.value = found.items;
    avatars.value = characters.items;
  } catch (error) {
    if (asProblem(error).status !== 401) tellProblem(error);
  }
}

export async function refreshModel(): Promise<void> {
  try {
    model.value = await api.model();
  } catch (error) {
    if (asProblem(error).status !== 401 && asProblem(error).status !== 0) tellProblem(error);
  }
}

/** Everything of one key goes when another signs in. */
export function clearStore(): void {
  contents.clear();
  loras.value = avatars.value = feed.value = null;
}

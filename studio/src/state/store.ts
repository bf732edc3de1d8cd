// What every view looks at: who is signed in, the model, the library, and contents by id.

import { signal, type Signal } from '@preact/signals';
import { api, asProblem, setListeners } from '../server/api';
import { explain } from '../server/explain';
import { recall, remember } from './memory';
import { announce } from './tabs';
import { isFinal, type Avatar, type Content, type Lora, type Model, type Session } from '../server/types';

export type Gate = 'opening' | 'sign-in' | 'open';

export const gate = signal<Gate>('opening');
export const session = signal<Session | null>(null);
/** The model as last seen, from before a reload too, so that the form need not wait for it. */
export const model = signal<Model | null>(recall<Model | null>('model', null));
export const loras = signal<Lora[] | null>(null);
export const avatars = signal<Avatar[] | null>(null);
/** Newest contents first, unfiltered; null until they were read. */
export const feed = signal<string[] | null>(null);
export const reached = signal(true);
/** A key that was valid is refused now: the sign-in says so. */
export const wasRefused = signal(false);

interface Notice {
  text: string;
  isError: boolean;
  /** It is about a lost connection, and goes when that is back. */
  isOffline: boolean;
  number: number;
  /** When it was told, in ms. */
  at: number;
  action?: { label: string; run: () => void };
}

export const notice = signal<Notice | null>(null);
/** Said to who cannot see: the end of work, not each step of it. */
export const said = signal('');

/** Which content the stage shows, and which picture of it; null: the newest. */
export const focus = signal<string | null>(null);
/** The picture that is looked at now, for what refers to "this one". */
export const looked = signal<{ content: Content; place: number } | null>(null);

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

export function tell(text: string, options: Partial<Omit<Notice, 'text' | 'number' | 'at'>> = {}): void {
  notice.value = { isError: false, isOffline: false, ...options, text, number: ++notices, at: Date.now() };
}

export function tellProblem(error: unknown): void {
  const problem = asProblem(error);
  tell(explain(problem), { isError: true, isOffline: problem.status === 0 });
}

setListeners(
  () => {
    wasRefused.value = gate.value === 'open';
    gate.value = 'sign-in';
  },
  (now) => {
    reached.value = now;
    if (now && notice.peek()?.isOffline) notice.value = null;
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

/** Note a LoRA that is new or changed. */
export function keepLora(lora: Lora): void {
  const others = (loras.value ?? []).filter((one) => one.id !== lora.id);
  const place = (loras.value ?? []).findIndex((one) => one.id === lora.id);
  loras.value = place < 0 ? [lora, ...others] : others.toSpliced(place, 0, lora);
  announce({ kind: 'library' });
}

let modelReadAt = 0;

/** Read the model's limits, unless they were read in the last `stillGoodMs`. */
export async function refreshModel(stillGoodMs = 0): Promise<void> {
  if (Date.now() - modelReadAt < stillGoodMs) return;
  try {
    model.value = await api.model();
    modelReadAt = Date.now();
    remember('model', model.value);
  } catch (error) {
    if (asProblem(error).status !== 401 && asProblem(error).status !== 0) tellProblem(error);
  }
}

/** Since when the owner's queue is paused; null: it goes on. */
export const pausedAt = signal<string | null>(null);

export async function refreshQueue(): Promise<void> {
  try {
    pausedAt.value = (await api.queue()).paused_at;
  } catch {
    // The banner of a lost connection says so; anything else is asked again.
  }
}

/** Begin nothing more, or go on; the other tabs hear of it. */
export async function pauseQueue(paused: boolean): Promise<void> {
  try {
    pausedAt.value = (await api.pauseQueue(paused)).paused_at;
    announce({ kind: 'queue' });
  } catch (error) {
    tellProblem(error);
  }
}

/** Everything of one key goes when another signs in. */
export function clearStore(): void {
  contents.clear();
  loras.value = avatars.value = feed.value = null;
  focus.value = looked.value = null;
  pausedAt.value = null;
}

// Follows contents that are being drawn: a few by their event stream, the others by asking.

import { computed, effect, signal, type Signal } from '@preact/signals';
import { api, asProblem, openEvents } from './api';
import { tellEnd, hasNews } from '../state/finished';
import { percent, t } from '../i18n';
import { route } from '../state/route';
import {
  contentOf,
  feed,
  forget,
  gate,
  keep,
  pausedAt,
  prependToFeed,
  reached,
  refreshLibrary,
  refreshQueue,
} from '../state/store';
import { readEvents, type ServerEvent } from './sse';
import { onNews } from '../state/tabs';
import { isFinal, type Content, type Events } from './types';

/** What is known of a content being drawn; `position` 0 is next in line. */
export interface Progress {
  position: number | null;
  /** What keeps it, and all others, from going on. */
  waits: string | null;
  phase: string | null;
  step: number;
  steps: number;
  eta: number | null;
  preview: string | null;
}

const NOTHING: Progress = {
  position: null,
  waits: null,
  phase: null,
  step: 0,
  steps: 0,
  eta: null,
  preview: null,
};
// A browser opens at most six connections to one server (HTTP/1.1), for all tabs together.
const STREAMS_SEEN = 3;
const STREAMS_HIDDEN = 1;
const POLL_MS = 2500;
const POLLED_AT_ONCE = 4;
const DRAWN = ['decode', 'restore', 'safety', 'image_encode', 'upload'];
const RETRY_MS = [500, 1000, 2000, 4000, 8000];

/** Contents that are not at their end, oldest first. */
export const active = signal<string[]>([]);
/** The last content that came to its end, for who wants to hear of it. */
export const ended = signal<Content | null>(null);

const progress = new Map<string, Signal<Progress>>();
const streams = new Map<string, AbortController>();

export function progressOf(id: string): Signal<Progress> {
  let kept = progress.get(id);
  if (!kept) progress.set(id, (kept = signal<Progress>(NOTHING)));
  return kept;
}

/** The part done of a content, 0 to 1; null while it waits. */
export function partDone({ step, steps }: Progress): number | null {
  return steps > 0 ? step / steps : null;
}

/** Keep `content`, and follow it to its end. */
export function follow(...found: Content[]): void {
  for (const content of found) keep(content);
  const fresh = found.filter((c) => !isFinal(c.status) && !active.value.includes(c.id));
  if (fresh.length) {
    active.value = [...active.value, ...fresh.map((content) => content.id)];
    attach();
  }
}

/** Follow contents of which only the ids are known. */
export function followIds(ids: string[]): void {
  active.value = [...active.value, ...ids.filter((id) => !active.value.includes(id))];
  attach();
}

export function stopFollowing(): void {
  for (const stream of streams.values()) stream.abort();
  streams.clear();
  active.value = [];
}

function settle(content: Content): void {
  const wasOpen = active.value.includes(content.id);
  keep(content);
  drop(content.id);
  ended.value = content;
  if (wasOpen) tellEnd(content);
}

function drop(id: string): void {
  streams.get(id)?.abort();
  streams.delete(id);
  progress.delete(id);
  active.value = active.value.filter((other) => other !== id);
  attach();
}

function attach(): void {
  const room = document.hidden ? STREAMS_HIDDEN : STREAMS_SEEN;
  for (const [id, stream] of [...streams].slice(room)) {
    stream.abort();
    streams.delete(id);
  }
  for (const id of active.value) {
    if (streams.size >= room) return;
    if (streams.has(id)) continue;
    const control = new AbortController();
    streams.set(id, control);
    void stream(id, control.signal);
  }
}

async function stream(id: string, signal: AbortSignal): Promise<void> {
  let last = '';
  for (let failures = 0; !signal.aborted; failures++) {
    try {
      const answer = await openEvents(id, last, signal);
      reached.value = true;
      if (answer.body) {
        for await (const event of readEvents(answer.body)) {
          failures = 0;
          last = event.id ?? last;
          if (take(id, event)) return;
        }
      }
    } catch (error) {
      if (signal.aborted) return;
      const { status } = asProblem(error);
      if (status === 404) {
        forget(id);
        return drop(id);
      }
      if (status === 401) {
        gate.value = 'sign-in';
        return;
      }
      if (status === 0) reached.value = false;
    }
    await new Promise((wake) => setTimeout(wake, RETRY_MS[Math.min(failures, 4)]));
  }
}

/** Why an accepted content does not go on, as the server names it; null: it does. */
export const reasonIn = (told: object): string | null =>
  (told as { waiting_for?: { reason?: string } | null }).waiting_for?.reason ?? null;

/** Take one event in; true when it was the last. */
function take(id: string, event: ServerEvent): boolean {
  const now = progressOf(id);
  const read = <K extends keyof Events>(_: K): Events[K] => JSON.parse(event.data) as Events[K];
  switch (event.type) {
    case 'queued': {
      const waits = reasonIn(read('queued'));
      now.value = { ...NOTHING, position: read('queued').position, waits };
      // Paused or resumed by another program of the same person's.
      if ((waits === 'queue_paused') !== (pausedAt.peek() !== null)) void refreshQueue();
      return false;
    }
    case 'started':
      if (pausedAt.peek() !== null) void refreshQueue();
      now.value = { ...now.value, position: null };
      mark(id);
      return false;
    case 'progress': {
      const data = read('progress');
      // Steps are told now and then: what comes after the drawing has all of them behind it.
      const isDrawn = DRAWN.includes(data.phase);
      now.value = {
        ...now.value,
        position: null,
        phase: data.phase,
        step: isDrawn ? (data.steps || now.value.steps) : data.step || now.value.step,
        steps: data.steps || now.value.steps,
        eta: data.eta_seconds ?? null,
      };
      mark(id);
      return false;
    }
    case 'preview':
      now.value = { ...now.value, preview: read('preview').image };
      return false;
    case 'succeeded':
    case 'failed':
    case 'cancelled':
      settle(read(event.type).content);
      return true;
    default:
      return false;
  }
}

/** The row is asked for only at the end, so that it starts is noted here. */
function mark(id: string): void {
  const content = contentOf(id).peek();
  if (content?.status === 'queued') {
    keep({ ...content, status: 'running', started_at: new Date().toISOString() });
  } else if (!content) void api.content(id).then(keep, () => {});
}

let turn = 0;

async function poll(): Promise<void> {
  const silent = active.value.filter((id) => !streams.has(id));
  const asked = silent.slice(turn, turn + POLLED_AT_ONCE);
  turn = turn + POLLED_AT_ONCE >= silent.length ? 0 : turn + POLLED_AT_ONCE;
  for (const id of asked) {
    try {
      const content = await api.content(id);
      if (isFinal(content.status)) settle(content);
      else keep(content);
    } catch (error) {
      if (asProblem(error).status === 404) {
        forget(id);
        drop(id);
      }
    }
  }
}

/** What another tab has made or changed. */
function hear(ids: string[]): void {
  for (const id of ids) {
    api.content(id).then(
      (content) => {
        if (content.deleted_at) {
          forget(id);
          drop(id);
          return;
        }
        const isNew = !contentOf(id).peek();
        follow(content);
        if (isNew && !feed.value?.includes(id)) prependToFeed([id]);
      },
      (error) => {
        if (asProblem(error).status === 404) forget(id);
      },
    );
  }
}

/** What the tab's title says of the drawing. */
const headline = computed(() => {
  const ids = active.value;
  if (!ids.length) return '';
  const parts = ids.map((id) => partDone(progressOf(id).value));
  const part = parts.reduce<number>((sum, one) => sum + (one ?? 0), 0) / ids.length;
  return `${percent(part)}${ids.length > 1 ? ` (${ids.length})` : ''}`;
});

/** Each view's name, as the address has it. */
const VIEWS = ['create', 'gallery', 'loras', 'avatars', 'grid', 'batches', 'costs', 'verify', 'more'] as const;

function titleOf(view: string): string {
  if (view === 'shared') return t('viewer.label');
  // Nobody signs in to check a picture.
  if (gate.value === 'sign-in' && view !== 'verify') return t('signIn.title');
  if (view === 'content') return t('viewer.label');
  if (view === 'compare') return t('action.compare');
  const known = VIEWS.find((one) => one === view);
  return t(known ? `nav.${known}` : 'state.notFound');
}

export function startLive(): void {
  document.addEventListener('visibilitychange', attach);
  setInterval(() => void (gate.value === 'open' && poll()), POLL_MS);
  onNews((news) => {
    if (gate.value !== 'open') return;
    if (news.kind === 'made' || news.kind === 'changed') hear(news.ids);
    else if (news.kind === 'library') void refreshLibrary();
  });
  document.addEventListener('visibilitychange', () => {
    if (!document.hidden) hasNews.value = false;
  });
  effect(() => {
    const view = titleOf(route.value.view);
    const lead = headline.value || (hasNews.value ? '✓' : '');
    document.title = [lead, view, 'Studio'].filter(Boolean).join(' · ');
  });
}

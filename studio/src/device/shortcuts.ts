// Keys that act wherever the reader is, and the choice to have none of them.

import { signal } from '@preact/signals';
import { recall, remember } from '../state/memory';
import { go } from '../state/route';

export const areOn = signal<boolean>(recall('shortcuts', true));

export function setShortcuts(wanted: boolean): void {
  areOn.value = wanted;
  remember('shortcuts', wanted);
}

/** After `g`. */
export const LETTERS: Record<string, string> = {
  c: 'create',
  g: 'gallery',
  l: 'loras',
  a: 'avatars',
  x: 'grid',
  b: 'batches',
  s: 'costs',
};

/** Alone: the button of the picture in view that it presses. */
const BUTTONS: Record<string, string> = {
  s: 'star',
  d: 'download',
  v: 'vary',
  c: 'compare',
  Delete: 'delete',
};

/** Whether a key pressed there is text or belongs to a control. */
export const isTyping = (target: EventTarget | null): boolean =>
  target instanceof Element && target.closest('input, textarea, select, dialog, [role=menu]') !== null;

/** Listen until the returned function is called. */
export function listenForKeys(showList: () => void): () => void {
  let awaits = false;
  const onKey = (e: KeyboardEvent) => {
    if (!areOn.value || e.ctrlKey || e.metaKey || e.altKey || isTyping(e.target)) return;
    const view = LETTERS[e.key];
    const button = BUTTONS[e.key];
    if (awaits && view) go(view);
    else if (e.key === '?') showList();
    else if (e.key === '/') {
      e.preventDefault();
      const wanted = location.hash.startsWith('#/gallery') ? '.gallery input[type=search]' : null;
      if (wanted) document.querySelector<HTMLElement>(wanted)?.focus();
      else {
        go('create');
        setTimeout(() => document.querySelector<HTMLElement>('textarea.prompt')?.focus());
      }
    } else if (button)
      document.querySelector<HTMLElement>(`.actions:not([inert]) [data-key=${button}]`)?.click();
    awaits = e.key === 'g' && !awaits;
  };
  addEventListener('keydown', onKey);
  return () => removeEventListener('keydown', onKey);
}

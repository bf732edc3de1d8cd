// The end of work is said: to who cannot see, in the tab's title, and where it is wished for by the
// system's notification and a sound.

import { signal } from '@preact/signals';
import { explainEnd } from '../server/explain';
import { t } from '../i18n';
import { recall, remember } from './memory';
import { go } from './route';
import { focus, said } from './store';
import type { Content } from '../server/types';

/** Something came to its end while nobody looked. */
export const hasNews = signal(false);

export const notifies = signal<boolean>(recall('notifies', false));
export const sounds = signal<boolean>(recall('sounds', false));

export async function setNotifies(wanted: boolean): Promise<void> {
  const isAllowed =
    wanted && 'Notification' in window && (await Notification.requestPermission()) === 'granted';
  notifies.value = isAllowed;
  remember('notifies', isAllowed);
}

export function setSounds(wanted: boolean): void {
  sounds.value = wanted;
  remember('sounds', wanted);
  if (wanted) sound();
}

/** Two short, soft tones. */
function sound(): void {
  const context = new AudioContext();
  const gain = context.createGain();
  gain.connect(context.destination);
  const now = context.currentTime;
  gain.gain.setValueAtTime(0.08, now);
  gain.gain.exponentialRampToValueAtTime(0.0001, now + 0.5);
  [660, 880].forEach((pitch, place) => {
    const tone = context.createOscillator();
    tone.frequency.value = pitch;
    tone.connect(gain);
    tone.start(now + place * 0.14);
    tone.stop(now + 0.5);
  });
  setTimeout(() => void context.close(), 800);
}

const wordsOf = (content: Content): string => {
  const lead = t(`status.${content.status}`);
  const why = content.error ? ` ${explainEnd(content.error)}` : '';
  return `${lead}: ${content.prompt.slice(0, 80) || t('picture.noPrompt')}.${why}`;
};

/** Tell that a content came to its end. */
export function tellEnd(content: Content): void {
  said.value = wordsOf(content);
  if (content.status === 'cancelled') return;
  if (sounds.value) sound();
  if (!document.hidden) return;
  hasNews.value = true;
  if (!notifies.value || !('Notification' in window)) return;
  try {
    const shown = new Notification(t(`status.${content.status}`), {
      body: content.prompt.slice(0, 120),
      tag: content.id,
    });
    shown.onclick = () => {
      window.focus();
      focus.value = content.id;
      go('create');
      shown.close();
    };
  } catch {
    // A phone's browser only lets a service worker show one.
  }
}

// The frame around every view: navigation, banners, notices, what is said aloud.

import type { ComponentChildren } from 'preact';
import { useEffect, useLayoutEffect, useRef, useState } from 'preact/hooks';
import { t, type Key } from '../i18n';
import { route } from '../state/route';
import { listenForKeys } from '../device/shortcuts';
import * as store from '../state/store';
import { DropZone } from './dropZone';
import { Icon, type IconName } from './icons';
import { Preferences, Shortcuts } from './preferences';
import { Button } from './ui';

interface Place {
  view: string;
  icon: IconName;
  label: Key;
}

export const PLACES: Place[] = [
  { view: 'create', icon: 'create', label: 'nav.create' },
  { view: 'gallery', icon: 'gallery', label: 'nav.gallery' },
  { view: 'loras', icon: 'loras', label: 'nav.loras' },
  { view: 'avatars', icon: 'avatars', label: 'nav.avatars' },
  { view: 'grid', icon: 'grid', label: 'nav.grid' },
  { view: 'batches', icon: 'batches', label: 'nav.batches' },
  { view: 'costs', icon: 'costs', label: 'nav.costs' },
  { view: 'verify', icon: 'seal', label: 'nav.verify' },
];
/** How many of them a phone's bar has room for. */
export const NEAR = 4;

export function Shell({ foot, children }: { foot: ComponentChildren; children: ComponentChildren }) {
  const [showsKeys, setShowsKeys] = useState(false);
  const main = useRef<HTMLElement>(null);
  useLayoutEffect(() => listenForKeys(() => setShowsKeys(true)), []);
  // Where a view went and took the focus along, the next one has it.
  const isFirst = useRef(true);
  useEffect(() => {
    // Not of the first view: there the Tab key begins at the page's beginning.
    if (isFirst.current) {
      isFirst.current = false;
      return;
    }
    const timer = setTimeout(() => {
      if (document.activeElement === document.body) main.current?.focus({ preventScroll: true });
    }, 50);
    return () => clearTimeout(timer);
  }, [route.value.view, route.value.ids.join()]);
  useEffect(() => keepFocus(() => main.current), []);
  return (
    <div class="shell">
      <a
        class="skip"
        href="#main"
        onClick={(e) => {
          e.preventDefault();
          main.current?.focus();
        }}
      >
        {t('nav.skip')}
      </a>
      <nav class="rail" aria-label={t('nav.label')}>
        <a class="brand" href="#/create" aria-label="Studio">
          <svg viewBox="0 0 32 32" width="26" height="26" aria-hidden="true">
            <circle cx="12.5" cy="16" r="7" class="mark-ink" />
            <circle cx="19.5" cy="16" r="7" class="mark-accent" />
          </svg>
        </a>
        <ul>
          {PLACES.map((place, number) => (
            <li key={place.view} class={number >= NEAR ? 'far' : ''}>
              <PlaceLink place={place} />
            </li>
          ))}
          <li class="near">
            <PlaceLink place={{ view: 'more', icon: 'more', label: 'nav.more' }} />
          </li>
        </ul>
        <div class="rail-foot">
          <Button icon="keyboard" kind="quiet" iconOnly onClick={() => setShowsKeys(true)}>
            {t('keys.title')}
          </Button>
          <Preferences compact />
          {foot}
        </div>
      </nav>
      <div class="middle">
        <Banner />
        <main id="main" ref={main} tabIndex={-1}>
          {children}
        </main>
      </div>
      <DropZone />
      <Notice />
      <p class="unseen" role="status">
        {store.said.value}
      </p>
      {showsKeys && <Shortcuts onClose={() => setShowsKeys(false)} />}
    </div>
  );
}

const SETTLE_MS = 50;

/** Where what had the focus is gone (deleted, done), the view has it, not the page's beginning. */
function keepFocus(view: () => HTMLElement | null): () => void {
  let last: Element | null = null;
  const note = (e: FocusEvent) => (last = e.target as Element);
  const look = () => {
    if (!last || last.isConnected) return;
    last = null;
    // Whoever took it out may have a better place for it.
    setTimeout(() => {
      if (document.activeElement === document.body) view()?.focus({ preventScroll: true });
    }, SETTLE_MS);
  };
  const watch = new MutationObserver(look);
  watch.observe(document.body, { childList: true, subtree: true });
  addEventListener('focusin', note);
  return () => {
    watch.disconnect();
    removeEventListener('focusin', note);
  };
}

/** What keeps the page or the pictures from going on; it takes its own room above the view. */
function Banner() {
  if (store.gate.value !== 'open') return null;
  if (!store.reached.value) {
    return (
      <p class="banner" role="alert">
        {t('state.offline')}
      </p>
    );
  }
  if (store.pausedAt.value !== null) {
    return (
      <p class="banner quiet" role="status">
        {t('queue.paused')}{' '}
        <Button kind="quiet" onClick={() => void store.pauseQueue(false)}>
          {t('queue.resume')}
        </Button>
      </p>
    );
  }
  if (store.model.value?.worker !== 'unreachable') return null;
  return (
    <p class="banner quiet" role="status">
      {t('state.worker')}
    </p>
  );
}

function PlaceLink({ place }: { place: Place }) {
  const here = route.value.view;
  const isHere = here === place.view || (here === 'content' && place.view === 'gallery');
  return (
    <a href={`#/${place.view}`} aria-current={isHere ? 'page' : undefined}>
      <Icon name={place.icon} size={20} />
      <span>{t(place.label)}</span>
    </a>
  );
}

const NOTICE_MS = 8_000;
// What is told as the reader is led to another view is about that one.
const OF_THIS_VIEW_MS = 1_000;

function Notice() {
  const now = store.notice.value;
  useEffect(() => {
    if (!now || now.isError) return;
    const timer = setTimeout(() => (store.notice.value = null), NOTICE_MS);
    return () => clearTimeout(timer);
  }, [now]);
  const { view } = route.value;
  useEffect(() => {
    const shown = store.notice.peek();
    // What can be taken back stays its time; everything else belongs to the view it was told in.
    if (shown && (shown.isError || !shown.action) && Date.now() - shown.at > OF_THIS_VIEW_MS)
      store.notice.value = null;
  }, [view]);
  const close = () => (store.notice.value = null);
  return (
    <div class="notices" aria-live="polite">
      {now && (
        <div class={`notice ${now.isError ? 'error' : ''}`} key={now.number}>
          <p>{now.text}</p>
          {now.action && (
            <Button
              kind="quiet"
              onClick={() => {
                close();
                now.action?.run();
              }}
            >
              {now.action.label}
            </Button>
          )}
          <Button icon="close" kind="quiet" iconOnly onClick={close}>
            {t('action.dismiss')}
          </Button>
        </div>
      )}
    </div>
  );
}

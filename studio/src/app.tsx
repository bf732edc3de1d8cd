// The frame around every view: opening, navigation, notices, shortcuts.

import { effect } from '@preact/signals';
import type { ComponentChildren } from 'preact';
import { useEffect, useLayoutEffect, useState } from 'preact/hooks';
import { api, asProblem } from './api';
import { clearDraft } from './draft';
import { clearGrids } from './grids';
import { language, t, type Key } from './i18n';
import { follow, stopFollowing } from './live';
import { recall, remember } from './memory';
import { Icon, type IconName } from './parts/icons';
import { Preferences, Shortcuts } from './parts/preferences';
import { Button, Loading } from './parts/ui';
import { go, route } from './route';
import * as store from './store';
import { AvatarsView } from './views/avatars';
import { BatchesView, clearBatches } from './views/batches';
import { CompareView } from './views/compare';
import { ContentView } from './views/content';
import { CostsView } from './views/costs';
import { CreateView } from './views/create';
import { forgetGallery, GalleryView } from './views/gallery';
import { GridView } from './views/grid';
import { LorasView } from './views/loras';
import { SignInView } from './views/signIn';

const FIRST_PAGE = 60;
const MODEL_MS = 20_000;
const NO_MODEL_MS = 2_000;
const NOTICE_MS = 6_000;
const RETRY_MS = 3_000;

interface Place {
  view: string;
  icon: IconName;
  label: Key;
  /** After `g`. */
  letter: string;
}

const PLACES: Place[] = [
  { view: 'create', icon: 'create', label: 'nav.create', letter: 'c' },
  { view: 'gallery', icon: 'gallery', label: 'nav.gallery', letter: 'g' },
  { view: 'loras', icon: 'loras', label: 'nav.loras', letter: 'l' },
  { view: 'avatars', icon: 'avatars', label: 'nav.avatars', letter: 'a' },
  { view: 'grid', icon: 'grid', label: 'nav.grid', letter: 'x' },
  { view: 'batches', icon: 'batches', label: 'nav.batches', letter: 'b' },
  { view: 'costs', icon: 'costs', label: 'nav.costs', letter: 's' },
];

/** What one key's user left in this browser is not for the next one. */
function forgetWork(): void {
  clearDraft();
  clearGrids();
  clearBatches();
  forgetGallery();
}

/** Read who is signed in and everything that the first view needs; again after each sign-in. */
async function open(): Promise<void> {
  stopFollowing();
  store.clearStore();
  forgetGallery();
  try {
    const session = await api.session();
    store.session.value = session;
    if (session.signed_in && recall<string | null>('name', null) !== session.name) {
      forgetWork();
      remember('name', session.name);
    }
    if (session.keys_required && !session.signed_in) {
      store.gate.value = 'sign-in';
      return;
    }
    store.gate.value = 'open';
    await Promise.all([store.refreshModel(), store.refreshLibrary(), readFeed()]);
  } catch (error) {
    if (asProblem(error).status === 0) setTimeout(() => void open(), RETRY_MS);
    else store.tellProblem(error);
  }
}

async function readFeed(): Promise<void> {
  const page = await api.contents({ limit: FIRST_PAGE });
  store.feed.value = page.items.map((content) => content.id);
  // Oldest first, as they will be drawn.
  follow(...page.items.reverse());
}

export function App() {
  useEffect(() => {
    void open();
    let asked = Date.now();
    const timer = setInterval(() => {
      const isWell = store.reached.value && store.model.value?.worker === 'ready';
      const pause = isWell ? MODEL_MS : NO_MODEL_MS;
      if (store.gate.value !== 'open' || document.hidden || Date.now() - asked < pause) return;
      asked = Date.now();
      void store.refreshModel();
    }, NO_MODEL_MS);
    const stop = effect(() => {
      document.documentElement.lang = language.value;
    });
    return () => {
      clearInterval(timer);
      stop();
    };
  }, []);
  if (store.gate.value === 'sign-in') {
    return (
      <div class="shell gate">
        <SignInView onSignedIn={() => void open()} />
        <aside class="gate-foot">
          <Preferences />
        </aside>
      </div>
    );
  }
  return (
    <Shell>
      {store.gate.value === 'opening' ? (
        <Loading label={store.reached.value ? undefined : t('state.offline')} />
      ) : (
        <View />
      )}
    </Shell>
  );
}

function View() {
  const { view, ids } = route.value;
  switch (view) {
    case 'create':
      return <CreateView />;
    case 'gallery':
      return <GalleryView />;
    case 'content':
      return ids[0] ? <ContentView id={ids[0]} /> : <NotFound />;
    case 'loras':
      return <LorasView />;
    case 'avatars':
      return <AvatarsView />;
    case 'compare':
      return <CompareView ids={ids} />;
    case 'grid':
      return <GridView id={ids[0]} key={ids[0]} />;
    case 'batches':
      return <BatchesView />;
    case 'costs':
      return <CostsView />;
    case 'more':
      return <MoreView />;
    default:
      return <NotFound />;
  }
}

function NotFound() {
  return (
    <div class="page">
      <h1>{t('state.notFound')}</h1>
      <p>
        <a class="button" href="#/create">
          {t('nav.create')}
        </a>
      </p>
    </div>
  );
}

function Shell({ children }: { children: ComponentChildren }) {
  const [showsKeys, setShowsKeys] = useState(false);
  useShortcuts(setShowsKeys);
  return (
    <div class="shell">
      <a class="skip" href="#main" onClick={skip}>
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
            <li key={place.view} class={number > 3 ? 'far' : ''}>
              <PlaceLink place={place} />
            </li>
          ))}
          <li class="near">
            <PlaceLink place={{ view: 'more', icon: 'more', label: 'nav.more', letter: '' }} />
          </li>
        </ul>
        <div class="rail-foot">
          <Preferences compact />
          <SignOut />
        </div>
      </nav>
      <main id="main" tabIndex={-1}>
        {!store.reached.value && store.gate.value === 'open' && (
          <p class="banner" role="alert">
            {t('state.offline')}
          </p>
        )}
        {store.reached.value && store.model.value?.worker === 'unreachable' && (
          <p class="banner quiet" role="status">
            {t('state.worker')}
          </p>
        )}
        {children}
      </main>
      <Notice />
      {showsKeys && <Shortcuts onClose={() => setShowsKeys(false)} />}
    </div>
  );
}

function skip(e: Event): void {
  e.preventDefault();
  document.getElementById('main')?.focus();
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

/** What has no room in a phone's bar. */
function MoreView() {
  return (
    <div class="page more">
      <h1>{t('nav.more')}</h1>
      <ul class="choices">
        {PLACES.slice(4).map((place) => (
          <li key={place.view}>
            <a href={`#/${place.view}`}>
              <Icon name={place.icon} /> {t(place.label)}
            </a>
          </li>
        ))}
      </ul>
      <Preferences />
      <SignOut />
    </div>
  );
}

function SignOut() {
  const now = store.session.value;
  if (!now?.keys_required || !now.signed_in) return null;
  const leave = async () => {
    try {
      await api.signOut();
      forgetWork();
      await open();
    } catch (error) {
      store.tellProblem(error);
    }
  };
  return (
    <Button icon="out" kind="quiet" iconOnly onClick={() => void leave()}>
      {t('signIn.out')}
    </Button>
  );
}

function Notice() {
  const now = store.notice.value;
  useEffect(() => {
    if (!now || now.isError) return;
    const timer = setTimeout(() => (store.notice.value = null), NOTICE_MS);
    return () => clearTimeout(timer);
  }, [now]);
  return (
    <div class="notices" aria-live="polite">
      {now && (
        <div class={`notice ${now.isError ? 'error' : ''}`} key={now.number}>
          <p>{now.text}</p>
          <Button icon="close" kind="quiet" iconOnly onClick={() => (store.notice.value = null)}>
            {t('action.dismiss')}
          </Button>
        </div>
      )}
    </div>
  );
}

/** `g` and then a letter goes to a view, `?` shows the shortcuts, `/` goes to the prompt. */
function useShortcuts(showKeys: (shown: boolean) => void): void {
  useLayoutEffect(() => {
    let awaits = false;
    const onKey = (e: KeyboardEvent) => {
      if (e.ctrlKey || e.metaKey || e.altKey) return;
      if ((e.target as HTMLElement).closest('input, textarea, select, dialog')) return;
      const place = PLACES.find(({ letter }) => letter === e.key);
      if (awaits && place) go(place.view);
      else if (e.key === '?') showKeys(true);
      else if (e.key === '/') {
        e.preventDefault();
        go('create');
        setTimeout(() => document.querySelector<HTMLElement>('textarea.prompt')?.focus());
      }
      awaits = e.key === 'g' && !awaits;
    };
    addEventListener('keydown', onKey);
    return () => removeEventListener('keydown', onKey);
  }, [showKeys]);
}

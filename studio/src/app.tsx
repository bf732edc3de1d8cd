// Opening the page: who is signed in, what every view needs, and which view is shown.

import { effect } from '@preact/signals';
import { useEffect } from 'preact/hooks';
import { api, asProblem } from './server/api';
import { clearDraft, dropDeletedLoras } from './drafting/draft';
import { clearHistory } from './state/history';
import { language, t } from './i18n';
import { lazy } from './lazy';
import { follow, stopFollowing } from './server/live';
import { recall, remember } from './state/memory';
import { DropZone } from './parts/dropZone';
import { Icon } from './parts/icons';
import { Preferences } from './parts/preferences';
import { NEAR, PLACES, Shell } from './parts/shell';
import { Button, Loading } from './parts/ui';
import { clearPresets } from './drafting/presets';
import { route } from './state/route';
import type { Session } from './server/types';
import * as store from './state/store';
import { announce, onNews } from './state/tabs';
import { clearWords, refreshWords } from './state/words';
import { clearBatches } from './state/batchList';
import { forgetGallery } from './state/galleryPlace';
import { mayShowForm } from './takeOver';
import { CreateView, fetchStage } from './views/create';
import { SignInView } from './views/signIn';

const fetchContent = () => import('./views/content');
const fetchGallery = () => import('./views/gallery');
const AvatarsView = lazy(() => import('./views/avatars').then((found) => found.AvatarsView));
const BatchesView = lazy(() => import('./views/batches').then((found) => found.BatchesView));
const CompareView = lazy(() => import('./views/compare').then((found) => found.CompareView));
const ContentView = lazy(() => fetchContent().then((found) => found.ContentView));
const CostsView = lazy(() => import('./views/costs').then((found) => found.CostsView));
const GalleryView = lazy(() => fetchGallery().then((found) => found.GalleryView));
const GridView = lazy(() => import('./views/grid').then((found) => found.GridView));
const LorasView = lazy(() => import('./views/loras').then((found) => found.LorasView));
const VerifyView = lazy(() => import('./views/verify').then((found) => found.VerifyView));
const SharedView = lazy(() => import('./views/shared').then((found) => found.SharedView));

const FIRST_PAGE = 30;
const MODEL_MS = 20_000;
const NO_MODEL_MS = 2_000;
const RETRY_MS = 3_000;

/** What one key's user left in this browser is not for the next one. */
function forgetWork(): void {
  clearDraft();
  clearBatches();
  clearHistory();
  clearPresets();
  forgetGallery();
}

let early: Promise<Session> | null = null;

/** Ask who is signed in while the words are still on their way: one way over a slow line less. */
export function askEarly(): void {
  early = api.session();
  early.catch(() => {}); // told by who waits for it
  const fetch = { gallery: fetchGallery, content: fetchContent }[route.value.view];
  fetch?.().catch(() => {}); // told by the view
}

/** Read who is signed in and everything that the first view needs; again after each sign-in. */
async function open(): Promise<void> {
  stopFollowing();
  store.clearStore();
  clearWords();
  forgetGallery();
  try {
    const asked = early ?? api.session();
    early = null;
    const session = await asked;
    store.session.value = session;
    if (session.signed_in && recall<string | null>('name', null) !== session.name) {
      forgetWork();
      remember('name', session.name);
    }
    if (session.keys_required && !session.signed_in) {
      store.gate.value = 'sign-in';
      return;
    }
    store.wasRefused.value = false;
    store.gate.value = 'open';
    await Promise.all([store.refreshModel(RETRY_MS), store.refreshLibrary(), readFeed()]);
    void store.refreshQueue();
    void refreshWords();
    prefetch();
    if (dropDeletedLoras()) store.tell(t('told.loraDropped'), { isError: true });
  } catch (error) {
    if (asProblem(error).status === 0) setTimeout(() => void open(), RETRY_MS);
    else store.tellProblem(error);
  }
}

/** The views that are opened most, once the line is free; a lost line shows when they are opened. */
function prefetch(): void {
  for (const fetch of [fetchStage, fetchContent, fetchGallery]) fetch().catch(() => {});
}

async function readFeed(): Promise<void> {
  const page = await api.contents({ limit: FIRST_PAGE });
  const read = page.items.map((content) => content.id);
  // What was asked for meanwhile is not among them.
  const made = (store.feed.value ?? []).filter((id) => !read.includes(id));
  store.feed.value = [...made, ...read];
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
      void store.refreshQueue();
    }, NO_MODEL_MS);
    onNews((news) => {
      if (news.kind === 'session') void open();
      if (news.kind === 'library') void refreshWords();
      if (news.kind === 'queue') void store.refreshQueue();
    });
    const stop = effect(() => {
      document.documentElement.lang = language.value;
    });
    return () => {
      clearInterval(timer);
      stop();
    };
  }, []);
  const { view, ids } = route.value;
  if (view === 'shared') return <SharedView token={ids[0] ?? ''} />;
  // Whoever comes across a picture may ask what it is.
  if (view === 'verify' && store.gate.value !== 'open') {
    return (
      <main class="public">
        <VerifyView />
        <DropZone />
        <aside class="gate-foot">
          <a href="#/create">{t('nav.create')}</a>
          <Preferences />
        </aside>
      </main>
    );
  }
  if (store.gate.value === 'sign-in') {
    return (
      <div class="shell gate">
        <SignInView
          onSignedIn={() => {
            announce({ kind: 'session' });
            void open();
          }}
        />
        <aside class="gate-foot">
          <a href="#/verify">{t('verify.title')}</a>
          <Preferences />
        </aside>
      </div>
    );
  }
  // The form is drawn while everything else is on its way.
  const canShow = store.gate.value === 'open' || (view === 'create' && mayShowForm());
  return (
    <Shell foot={<SignOut />}>
      {canShow ? <View /> : <Loading label={store.reached.value ? undefined : t('state.offline')} />}
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
      return ids[0] ? <ContentView item={ids[0]} /> : <NotFound />;
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
    case 'verify':
      return <VerifyView />;
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

/** What has no room in a phone's bar. */
function MoreView() {
  return (
    <div class="page more">
      <h1>{t('nav.more')}</h1>
      <ul class="choices">
        {PLACES.slice(NEAR).map((place) => (
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
      announce({ kind: 'session' });
      await open();
    } catch (error) {
      store.tellProblem(error);
    }
  };
  return (
    <>
      {now.name && <span class="who muted small" title={t('signIn.as', { name: now.name })}>{now.name}</span>}
      <Button icon="out" kind="quiet" iconOnly onClick={() => void leave()}>
        {t('signIn.out')}
      </Button>
    </>
  );
}

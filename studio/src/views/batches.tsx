// Batches: many prompts at once with the form's settings, and how far each batch is.

import { signal } from '@preact/signals';
import { useEffect, useState } from 'preact/hooks';
import { api, asProblem } from '../api';
import { asBody, check, whole } from '../draft';
import { estimate } from '../estimate';
import { duration, moment, number, plural, t, usd } from '../i18n';
import { follow } from '../live';
import { SettingsLine } from '../parts/settingsLine';
import { Button, Empty, Field, Loading } from '../parts/ui';
import { explain, model, prependToFeed, tellProblem } from '../store';
import { isFinal, type Batch, type BatchBody, type Content } from '../types';
import { showBatch } from './gallery';

// The backend's bounds for one batch.
const MAX_PROMPTS = 100;
const MAX_CONTENTS = 500;
const SHOWN_AT_ONCE = 20;
const LOOK_MS = 2000;
const PAGE = 200;

// Newest first, as far as they were asked for; null until the first page is there.
const listed = signal<Batch[] | null>(null);
const next = signal<string | null>(null);

async function listMore(): Promise<void> {
  try {
    const page = await api.batches(SHOWN_AT_ONCE, next.value);
    const before = listed.value ?? [];
    const known = new Set(before.map((batch) => batch.batch_id));
    listed.value = [...before, ...page.items.filter((batch) => !known.has(batch.batch_id))];
    next.value = page.next_cursor;
  } catch (error) {
    tellProblem(error);
  }
}

/** From the start: batches may have been made elsewhere since. */
async function listAnew(): Promise<void> {
  next.value = null;
  listed.value = null;
  await listMore();
}

export function clearBatches(): void {
  listed.value = null;
  next.value = null;
}

/** All contents of a batch, page by page. */
async function contentsOf(batch_id: string): Promise<Content[]> {
  const found: Content[] = [];
  let cursor: string | null = null;
  do {
    const page = await api.contents({ batch_id, limit: PAGE, cursor });
    found.push(...page.items);
    cursor = page.next_cursor;
  } while (cursor);
  return found;
}

export function BatchesView() {
  useEffect(() => void listAnew(), []);
  return (
    <div class="page batches">
      <header class="page-head">
        <h1>{t('nav.batches')}</h1>
      </header>
      <Form />
      <List />
    </div>
  );
}

function List() {
  const batches = listed.value;
  if (!batches) return <Loading />;
  if (!batches.length)
    return (
      <Empty icon="batches" title={t('batch.empty')}>
        <p>{t('batch.emptyText')}</p>
      </Empty>
    );
  return (
    <>
      <ul class="cards wide">
        {batches.map((batch) => (
          <BatchCard key={batch.batch_id} first={batch} />
        ))}
      </ul>
      {next.value && (
        <Button icon="again" onClick={() => void listMore()}>
          {t('batch.older')}
        </Button>
      )}
    </>
  );
}

function Form() {
  const [text, setText] = useState('');
  const [count, setCount] = useState(1);
  const [error, setError] = useState<string | null>(null);
  const [isBusy, setBusy] = useState(false);
  const now = whole.value;
  const by = model.value;
  if (!now || !by) return <Loading />;
  const prompts = text.split('\n').map((line) => line.trim()).filter(Boolean);
  const all = prompts.length * count;
  const form = Object.values(check({ ...now, prompt: '' }, by, false))[0] ?? null;
  const promptProblem =
    prompts.length > MAX_PROMPTS
      ? t('batch.tooManyPrompts', { max: MAX_PROMPTS })
      : all > MAX_CONTENTS
        ? t('batch.tooMany', { max: MAX_CONTENTS })
        : null;
  const one = estimate({ ...now, num_images: now.count });
  const start = async () => {
    setBusy(true);
    setError(null);
    const { prompt: _, ...settings } = asBody(now);
    const body: BatchBody = { ...settings, prompts, count };
    try {
      const { batch_id } = await api.batch(body);
      listed.value = [await api.readBatch(batch_id), ...(listed.value ?? [])];
      setText('');
      const made = await contentsOf(batch_id);
      prependToFeed(made.map((content) => content.id));
      follow(...made.reverse());
    } catch (problem) {
      setError(explain(asProblem(problem)));
    } finally {
      setBusy(false);
    }
  };
  return (
    <form
      class="panel"
      noValidate
      onSubmit={(e) => {
        e.preventDefault();
        if (prompts.length && !promptProblem && !form && !isBusy) void start();
      }}
    >
      <div class="batch-fields">
        <Field label={t('batch.prompts')} error={promptProblem} hint={t('batch.promptsHint')}>
          {(attributes) => (
            <textarea
              {...attributes}
              rows={4}
              value={text}
              onInput={(e) => setText(e.currentTarget.value)}
            />
          )}
        </Field>
        <Field label={t('batch.count')}>
          {(attributes) => (
            <input
              {...attributes}
              type="number"
              class="number"
              min={1}
              max={100}
              value={count}
              onInput={(e) =>
                setCount(Math.min(100, Math.max(1, Math.round(e.currentTarget.valueAsNumber) || 1)))
              }
            />
          )}
        </Field>
      </div>
      <SettingsLine of={now} withoutPrompt />
      {(form ?? error) && (
        <p class="field-error" role="alert">
          {form ?? error}
        </p>
      )}
      <footer class="row between">
        <p class="expected num">
          {plural('count.pictures', all * now.count)}
          {one && all > 0 && ` · ≈ ${duration(one.seconds * all)}`}
          {one && all > 0 && ` · ${one.usd === null ? t('cost.none') : `≈ ${usd(one.usd * all)}`}`}
        </p>
        <Button
          type="submit"
          kind="accent"
          icon="batches"
          disabled={!prompts.length || !!promptProblem || !!form || isBusy}
        >
          {t('batch.start')}
        </Button>
      </footer>
    </form>
  );
}

const STATES = ['succeeded', 'running', 'queued', 'failed', 'cancelled'] as const;

function BatchCard({ first }: { first: Batch }) {
  const id = first.batch_id;
  const [batch, setBatch] = useState(first);
  const [isGone, setGone] = useState(false);
  useEffect(() => {
    if (first.queued + first.running === 0) return;
    let timer = 0;
    let ended = false;
    const look = async () => {
      try {
        const now = await api.readBatch(id);
        if (ended) return;
        setBatch(now);
        if (now.queued + now.running === 0) return;
      } catch (error) {
        if (asProblem(error).status === 404) {
          setGone(true);
          return;
        }
      }
      if (!ended) timer = window.setTimeout(() => void look(), LOOK_MS);
    };
    void look();
    return () => {
      ended = true;
      clearTimeout(timer);
    };
  }, [id]);
  const stop = async () => {
    try {
      const open = (await contentsOf(id)).filter((content) => !isFinal(content.status));
      for (const content of open) await api.cancel(content.id);
    } catch (error) {
      tellProblem(error);
    }
  };
  if (isGone) return null;
  const open = batch.queued + batch.running;
  return (
    <li class="card">
      <header class="row between">
        <h2 class="num">{plural('count.pictures', batch.total)}</h2>
        <span class="muted small">{moment(batch.created_at)}</span>
      </header>
      <div class="states" aria-hidden="true">
        {STATES.map((state) => (
          <span key={state} class={state} style={{ flexGrow: batch[state] }} />
        ))}
      </div>
      <p class="small num" role="status">
        {STATES.filter((state) => batch[state] > 0)
          .map((state) => `${number(batch[state])} ${t(`status.${state}`).toLowerCase()}`)
          .join(' · ')}
      </p>
      <footer class="row between">
        {open > 0 ? (
          <Button icon="close" onClick={() => void stop()}>
            {t('batch.cancel')}
          </Button>
        ) : (
          <span />
        )}
        <Button icon="gallery" onClick={() => showBatch(id)}>
          {t('batch.show')}
        </Button>
      </footer>
    </li>
  );
}

// Batches: many prompts at once with the form's settings, and how far each batch is.

import { signal } from '@preact/signals';
import { useEffect, useState } from 'preact/hooks';
import { api, asProblem } from '../api';
import { asBody, check, whole } from '../draft';
import { estimate } from '../estimate';
import { duration, moment, number, plural, t, usd } from '../i18n';
import { follow } from '../live';
import { recall, remember } from '../memory';
import { SettingsLine } from '../parts/settingsLine';
import { Button, Empty, Field, Loading } from '../parts/ui';
import { contentOf, explain, feed, model, prependToFeed, tellProblem } from '../store';
import { isFinal, type Batch, type BatchBody, type Content } from '../types';
import { showBatch } from './gallery';

// The backend's bounds for one batch.
const MAX_PROMPTS = 100;
const MAX_CONTENTS = 500;
const KEPT = 20;
const LOOK_MS = 2000;
const PAGE = 200;

const known = signal<string[]>(recall<string[]>('batches', []));

function remembered(id: string): void {
  known.value = [id, ...known.value.filter((one) => one !== id)].slice(0, KEPT);
  remember('batches', known.value);
}

export function clearBatches(): void {
  known.value = [];
  remember('batches', []);
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
  const inFeed = (feed.value ?? []).flatMap((id) => contentOf(id).value?.batch_id ?? []);
  const ids = [...new Set([...known.value, ...inFeed])];
  return (
    <div class="page batches">
      <header class="page-head">
        <h1>{t('nav.batches')}</h1>
      </header>
      <Form />
      {ids.length ? (
        <ul class="cards wide">
          {ids.map((id) => (
            <BatchCard key={id} id={id} />
          ))}
        </ul>
      ) : (
        <Empty icon="batches" title={t('batch.empty')}>
          <p>{t('batch.emptyText')}</p>
        </Empty>
      )}
    </div>
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
      remembered(batch_id);
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

function BatchCard({ id }: { id: string }) {
  const [batch, setBatch] = useState<Batch | null>(null);
  const [isGone, setGone] = useState(false);
  useEffect(() => {
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
  if (isGone || !batch) return null;
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

// Batches: many prompts at once with the form's settings, and how far each batch is.

import { useEffect, useRef, useState } from 'preact/hooks';
import { api, asProblem } from '../server/api';
import { asBody, check, draft, whole } from '../drafting/draft';
import { estimate } from '../drafting/estimate';
import { duration, moment, plural, t, usd } from '../i18n';
import { follow } from '../server/live';
import { SettingsLine } from '../parts/composer/settingsLine';
import { Button, Empty, Field, Loading } from '../parts/ui';
import { contentsOf, listAnew, listed, listMore, next } from '../state/batchList';
import { explain } from '../server/explain';
import { NumberInput } from '../parts/composer/numberInput';
import { Thumb } from '../parts/pictures/picture';
import { keep, model, prependToFeed, reached, tellProblem } from '../state/store';
import { announce } from '../state/tabs';
import type { Batch, BatchBody } from '../server/types';
import { NO_FILTER, pathOf } from '../state/galleryFilter';
import { go } from '../state/route';

// The backend's bounds for one batch.
const MAX_PROMPTS = 100;
const MAX_CONTENTS = 500;
const MAX_COUNT = 100;
const LOOK_MS = 2000;

/** Show a batch that was accepted just now, and follow its contents. */
async function takeUp(batch_id: string): Promise<void> {
  listed.value = [await api.readBatch(batch_id), ...(listed.value ?? [])];
  const made = await contentsOf(batch_id);
  prependToFeed(made.map((content) => content.id));
  announce({ kind: 'made', ids: made.map((content) => content.id) });
  follow(...made.reverse());
}

export function BatchesView() {
  const isFirst = useRef(true);
  useEffect(() => {
    // Anew each time the view is opened; for a line that came back, where there is no list yet.
    if (isFirst.current || (reached.value && !listed.peek())) void listAnew();
    isFirst.current = false;
  }, [reached.value]);
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
  const all = prompts.length * (Number.isFinite(count) ? count : 0);
  const isCount = Number.isInteger(count) && count >= 1 && count <= MAX_COUNT;
  const countProblem = isCount ? null : t('check.whole', { min: 1, max: MAX_COUNT });
  const form = Object.values(check({ ...now, prompt: '' }, by, false))[0] ?? null;
  const promptProblem =
    prompts.length > MAX_PROMPTS
      ? t('batch.tooManyPrompts', { max: MAX_PROMPTS })
      : all > MAX_CONTENTS
        ? t('batch.tooMany', { max: MAX_CONTENTS })
        : null;
  const isWrong = !!promptProblem || !!countProblem || !!form;
  const canStart = prompts.length > 0 && !isWrong && !isBusy && reached.value;
  const one = estimate({ ...now, num_images: now.count });
  const start = async () => {
    setBusy(true);
    setError(null);
    const { prompt: _, ...settings } = asBody(draft.value);
    const body: BatchBody = { ...settings, prompts, count };
    try {
      await takeUp((await api.batch(body)).batch_id);
      setText('');
    } catch (error) {
      const problem = asProblem(error);
      // A lost connection is told by the banner as long as it lasts, not by a text that stays.
      if (problem.status !== 0) setError(explain(problem));
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
        if (canStart) void start();
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
        <Field label={t('batch.count')} error={countProblem}>
          {(attributes) => (
            <NumberInput
              {...attributes}
              least={1}
              most={MAX_COUNT}
              value={count}
              onChange={(next) => setCount(next ?? NaN)}
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
          disabled={!canStart}
        >
          {t('batch.start')}
        </Button>
      </footer>
    </form>
  );
}

const SAMPLE = 4;

/** The newest pictures of a batch. */
function Sample({ id, done }: { id: string; done: number }) {
  const [ids, setIds] = useState<string[]>([]);
  useEffect(() => {
    if (!done) return;
    api.contents({ batch_id: id, status: 'succeeded', limit: SAMPLE }).then(
      (page) => {
        for (const content of page.items) keep(content);
        setIds(page.items.map((content) => content.id));
      },
      () => {},
    );
  }, [id, Math.min(done, SAMPLE)]);
  if (!ids.length) return null;
  return (
    <div class="sample">
      {ids.map((one) => (
        <Thumb key={one} id={one} whole />
      ))}
    </div>
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
      setBatch(await api.cancelBatch(id));
    } catch (error) {
      tellProblem(error);
    }
  };
  const repeat = async () => {
    try {
      await takeUp((await api.repeatBatch(id)).batch_id);
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
      <ul class="batch-prompts">
        {batch.prompts.map((prompt) => (
          <li key={prompt} class="clamp">
            {prompt}
          </li>
        ))}
      </ul>
      <Sample id={id} done={batch.succeeded} />
      <div class="states" aria-hidden="true">
        {STATES.map((state) => (
          <span key={state} class={state} style={{ flexGrow: batch[state] }} />
        ))}
      </div>
      <p class="small num" role="status">
        {STATES.filter((state) => batch[state] > 0)
          .map((state) => plural(`state.${state}`, batch[state]))
          .join(' · ')}
      </p>
      <footer class="row between">
        {open > 0 ? (
          <Button icon="close" onClick={() => void stop()}>
            {t('batch.cancel')}
          </Button>
        ) : (
          <Button icon="again" onClick={() => void repeat()}>
            {t('batch.repeat')}
          </Button>
        )}
        <Button icon="gallery" onClick={() => go(pathOf({ ...NO_FILTER, batch_id: id }))}>
          {t('batch.show')}
        </Button>
      </footer>
    </li>
  );
}

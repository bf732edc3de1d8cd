// Beside the form: what is being drawn, and the last results. Fetched once the form is there.

import { useRef } from 'preact/hooks';
import { draw } from '../state/actions';
import { asBody, clearDraft, draft, whole } from '../drafting/draft';
import { t } from '../i18n';
import { Icon } from '../parts/icons';
import { Thumb } from '../parts/pictures/picture';
import { Button, Loading } from '../parts/ui';
import { Viewer } from '../parts/pictures/viewer';
import { contentOf, feed, focus, model } from '../state/store';

const STRIP = 24;

export function Stage() {
  const ids = feed.value ?? [];
  if (ids.length === 0) return <FirstRun />;
  const wanted = focus.value && contentOf(focus.value).value ? focus.value : null;
  const id = wanted ?? ids[0];
  const content = id ? contentOf(id).value : null;
  const leave = (by: -1 | 1) => {
    const to = ids[ids.indexOf(id ?? '') + by];
    if (to) focus.value = to;
  };
  return (
    <section class="stage" aria-label={t('create.stage')}>
      {content ? (
        <Viewer
          key={content.id}
          content={content}
          onShow={(shown) => (focus.value = shown)}
          onRemoved={() => (focus.value = null)}
          onLeave={leave}
        />
      ) : (
        <Loading />
      )}
      <Strip ids={ids.slice(0, STRIP)} shown={id} />
    </section>
  );
}

/** The last results: one stop of the Tab key, arrows move within. */
function Strip({ ids, shown }: { ids: string[]; shown: string | undefined }) {
  const box = useRef<HTMLDivElement>(null);
  const current = Math.max(0, ids.indexOf(shown ?? ''));
  const onKeyDown = (e: KeyboardEvent) => {
    const here = ids.indexOf((e.target as HTMLElement).dataset.id ?? '');
    const to: Record<string, number> = {
      ArrowRight: here + 1,
      ArrowLeft: here - 1,
      Home: 0,
      End: ids.length - 1,
    };
    const id = ids[to[e.key] ?? -1];
    if (!id) return;
    e.preventDefault();
    focus.value = id;
    box.current?.querySelector<HTMLElement>(`[data-id="${id}"]`)?.focus();
  };
  return (
    <div ref={box} class="strip" role="group" aria-label={t('create.recent')} onKeyDown={onKeyDown}>
      {ids.map((one, place) => (
        <Thumb
          key={one}
          id={one}
          whole
          chosen={one === shown}
          tabIndex={place === current ? 0 : -1}
          onOpen={(id) => (focus.value = id)}
        />
      ))}
    </div>
  );
}

/** The page before the first picture: one click makes it. */
function FirstRun() {
  const ideas = [t('first.idea1'), t('first.idea2'), t('first.idea3')];
  const make = async (prompt: string) => {
    const now = whole.value;
    if (!now) return;
    clearDraft();
    draft.value = { ...draft.value, prompt };
    const made = whole.value && (await draw(asBody(draft.value)));
    if (made) focus.value = made.id;
  };
  const worker = model.value?.worker;
  return (
    <section class="stage first" aria-label={t('create.stage')}>
      <Icon name="image" size={40} />
      <h2>{t('first.title')}</h2>
      <p>{t('first.text')}</p>
      <ul class="ideas">
        {ideas.map((idea) => (
          <li key={idea}>
            <Button icon="create" onClick={() => void make(idea)}>
              {idea}
            </Button>
          </li>
        ))}
      </ul>
      {worker && worker !== 'ready' && <p class="muted">{t('state.worker')}</p>}
    </section>
  );
}

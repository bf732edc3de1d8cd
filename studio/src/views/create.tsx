// Where pictures are made: the form, what is being drawn, and the last results.

import { signal } from '@preact/signals';
import { draw } from '../actions';
import { asBody, clearDraft, draft, whole } from '../draft';
import { t } from '../i18n';
import { Composer } from '../parts/composer';
import { Icon } from '../parts/icons';
import { Thumb } from '../parts/picture';
import { Button, Loading } from '../parts/ui';
import { Viewer } from '../parts/viewer';
import { contentOf, feed, model } from '../store';

const STRIP = 24;

/** Which content the stage shows; null: the newest. */
export const focus = signal<string | null>(null);

export function CreateView() {
  return (
    <div class="create">
      <h1 class="unseen">{t('nav.create')}</h1>
      <Composer
        onAccepted={(content) => {
          focus.value = content.id;
          document.querySelector('.stage')?.scrollIntoView({ block: 'start' });
        }}
      />
      <Stage />
    </div>
  );
}

function Stage() {
  const ids = feed.value;
  if (ids === null) {
    return (
      <section class="stage" aria-label={t('create.stage')}>
        <Loading />
      </section>
    );
  }
  if (ids.length === 0) return <FirstRun />;
  const id = focus.value && ids.includes(focus.value) ? focus.value : ids[0];
  const content = id ? contentOf(id).value : null;
  return (
    <section class="stage" aria-label={t('create.stage')}>
      {content ? (
        <Viewer
          key={content.id}
          content={content}
          onShow={(shown) => (focus.value = shown)}
          onRemoved={() => (focus.value = null)}
        />
      ) : (
        <Loading />
      )}
      <div class="strip" role="group" aria-label={t('create.recent')}>
        {ids.slice(0, STRIP).map((one) => (
          <Thumb key={one} id={one} chosen={one === id} onOpen={(shown) => (focus.value = shown)} />
        ))}
      </div>
    </section>
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
    const made = whole.value && (await draw(asBody(whole.value)));
    if (made) focus.value = made.id;
  };
  const worker = model.value?.worker;
  return (
    <section class="stage first" aria-label={t('create.stage')}>
      <Icon name="image" size={40} />
      <h2>{t('first.title')}</h2>
      <p>{t('first.text')}</p>
      <Button kind="accent" icon="create" onClick={() => void make(ideas[0] ?? '')}>
        {t('first.action')}
      </Button>
      <ul class="ideas">
        {ideas.slice(1).map((idea) => (
          <li key={idea}>
            <button type="button" class="chip" onClick={() => void make(idea)}>
              {idea}
            </button>
          </li>
        ))}
      </ul>
      {worker && worker !== 'ready' && <p class="muted">{t('state.worker')}</p>}
    </section>
  );
}

// Where pictures are made: the form, and beside it what is being drawn.

import { t } from '../i18n';
import { lazy } from '../lazy';
import { Composer } from '../parts/composer/composer';
import { Loading } from '../parts/ui';
import { feed, focus } from '../state/store';

export const fetchStage = () => import('./stage').then((found) => found.Stage);
const Stage = lazy(fetchStage);

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
      {feed.value === null ? (
        <section class="stage" aria-label={t('create.stage')}>
          <Loading />
        </section>
      ) : (
        <Stage />
      )}
    </div>
  );
}

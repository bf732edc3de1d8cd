// What a shared link shows: one picture, to whoever has it.

import { useEffect, useState } from 'preact/hooks';
import { api, asProblem, pictureUrl } from '../server/api';
import { explain } from '../server/explain';
import { moment, t } from '../i18n';
import { Empty, Loading } from '../parts/ui';
import { reached } from '../state/store';
import type { Shared } from '../server/types';

export function SharedView({ token }: { token: string }) {
  const [shared, setShared] = useState<Shared | null>(null);
  const [problem, setProblem] = useState<string | null>(null);
  useEffect(() => {
    if (shared) return;
    setProblem(null);
    api.shared(token).then(setShared, (error) => {
      const { status } = asProblem(error);
      setProblem(status === 404 ? t('share.gone') : explain(asProblem(error)));
    });
    // Also when the server is there again.
  }, [token, reached.value]);
  if (problem) return <Empty icon="image" title={problem} />;
  if (!shared) return <Loading />;
  return (
    <main class="shared">
      <img
        src={pictureUrl(shared.url)}
        alt={shared.prompt ?? t('viewer.label')}
        width={shared.width}
        height={shared.height}
      />
      {shared.prompt && <p class="prompt-text">{shared.prompt}</p>}
      <p class="muted small">{t('share.until', { date: moment(shared.expires_at) })}</p>
    </main>
  );
}
